import asyncio
import io
import time

from decant_bench.driver import Counters
from decant_bench.live import Lines, open_view, state_words
from decant_bench.self_check import ClientRecord, LoopWatch, Measured

QUIET = [0.0005] * 200


def test_a_quiet_client_casts_no_doubt() -> None:
    assert not ClientRecord(QUIET, QUIET, QUIET, 0.3).doubts(Measured(0.05, 0.01), share=0.1)


def test_the_same_delay_is_fatal_to_a_fast_server_and_nothing_to_a_slow_one() -> None:
    late = ClientRecord(QUIET, [0.0] * 190 + [0.02] * 10, QUIET, 0.3)

    [doubt] = late.doubts(Measured(0.05, 0.01), share=0.1)

    assert "schedule error reached 20.0 ms (p99); the limit is 5.0 ms" in doubt
    assert not late.doubts(Measured(0.5, 0.01), share=0.1)


def test_opening_a_connection_takes_its_time_and_is_not_the_clients_fault() -> None:
    assert not ClientRecord(QUIET, QUIET, [0.2] * 200, 0.3).doubts(Measured(0.05, 0.01), share=0.1)


def test_a_loop_that_lags_in_its_tail_or_all_the_time_makes_a_run_invalid() -> None:
    tail = ClientRecord([0.001] * 180 + [0.03] * 20, [], [], 0.9)
    always = ClientRecord([0.004] * 200, [], [], 0.9)

    assert "lag reached 30.0 ms (p99)" in tail.doubts(Measured(0.1, None), share=0.1)[0]
    assert "lag is 4.0 ms (p50)" in always.doubts(Measured(0.1, 0.02), share=0.1)[0]


async def test_the_watch_sees_a_loop_that_was_held_up() -> None:
    async with LoopWatch() as watch:
        await asyncio.sleep(0.05)
        blocked_until_s = time.perf_counter() + 0.2
        while time.perf_counter() < blocked_until_s:
            pass
        await asyncio.sleep(0.05)

    assert max(watch.lags_s) > 0.15
    assert watch.cpu_share > 0


def test_without_a_terminal_there_is_a_line_a_minute_and_one_at_the_end() -> None:
    now_s, out = [0.0], io.StringIO()
    view = Lines("load", out, clock=lambda: now_s[0])
    for now_s[0] in (0.0, 30.0, 61.0, 62.0):
        view.show({"sent": f"{now_s[0]:g}"})
    view.close()

    assert out.getvalue().splitlines() == ["load: sent 0", "load: sent 61", "load: sent 62"]
    assert isinstance(open_view("load", out, live=True), Lines)


def test_the_live_view_draws_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    view = open_view("load", out, live=True)
    counters = Counters(sent=5, completed=2)
    counters.errors["timeout"] += 1
    view.show(state_words(counters, elapsed_s=2.0, total=9, lags_s=[0.001, 0.004]))
    view.close()

    for words in ("5 of 9", "2 (1.0/s)", "timeout 1", "4.0 ms"):
        assert words in out.getvalue()


def test_a_lag_below_the_gap_does_no_harm_where_the_kernel_stamps() -> None:
    lags_s = [0.001] * 180 + [0.015] * 20
    stamped = ClientRecord(lags_s, QUIET, QUIET, 0.9, stamps="kernel")

    assert ClientRecord(lags_s, QUIET, QUIET, 0.9).doubts(Measured(0.1, 0.02), share=0.1)
    assert not stamped.doubts(Measured(0.1, 0.02), share=0.1)
    assert "more than the typical gap" in stamped.doubts(Measured(0.1, 0.012), share=0.1)[0]
