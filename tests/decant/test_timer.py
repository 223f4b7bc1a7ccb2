import asyncio
import time
from contextlib import closing

import pytest

from decant.timer import Timer


@pytest.fixture(params=["Linux", "Darwin"], autouse=True)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With timer files, and by the event loop's timers where there are none."""
    monkeypatch.setattr("platform.system", lambda: request.param)


async def test_calls_come_in_the_order_they_are_due_and_never_early() -> None:
    called: list[tuple[str, float]] = []
    with closing(Timer()) as timer:
        start_s = time.perf_counter()
        for name, after_s in (("last", 0.03), ("first", 0.001), ("passed", -1.0), ("middle", 0.0155)):
            due_s = start_s + after_s
            timer.at(due_s, lambda n=name, d=due_s: called.append((n, time.perf_counter() - d)))
        await timer.sleep_until(start_s + 0.031)
    assert [name for name, _ in called] == ["passed", "first", "middle", "last"]
    assert min(late_s for _, late_s in called) >= 0


async def test_a_call_may_ask_for_the_next_one() -> None:
    steps: list[int] = []
    with closing(Timer()) as timer:
        done = asyncio.Event()

        def step() -> None:
            steps.append(len(steps))
            if len(steps) == 3:
                done.set()
            else:
                timer.at(time.perf_counter() + 0.001, step)

        timer.at(0.0, step)
        await asyncio.wait_for(done.wait(), 10)
    assert steps == [0, 1, 2]


async def test_a_sleeper_that_is_cancelled_disturbs_nobody() -> None:
    with closing(Timer()) as timer:
        start_s = time.perf_counter()
        sleeper = asyncio.create_task(timer.sleep_until(start_s + 0.01))
        await asyncio.sleep(0)
        sleeper.cancel()
        await timer.sleep_until(start_s + 0.02)
    assert sleeper.cancelled()
    assert time.perf_counter() >= start_s + 0.02


async def test_a_closed_timer_calls_nobody() -> None:
    called: list[str] = []
    timer = Timer()
    timer.at(time.perf_counter() + 0.005, lambda: called.append("no"))
    timer.close()
    await asyncio.sleep(0.02)
    assert called == []
