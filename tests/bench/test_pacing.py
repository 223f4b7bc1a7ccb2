import asyncio

import pytest

from decant_bench.pacing import send_closed, send_open


class FakeClock:
    """Time stands still unless somebody sleeps until a time or works."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        return self.at_s

    async def sleep_until(self, due_s: float) -> None:
        self.at_s = max(self.at_s, due_s)
        await asyncio.sleep(0)


async def test_a_late_request_goes_out_at_once_and_the_next_is_due_when_it_was() -> None:
    clock, sent = FakeClock(), list[tuple[str, float, float]]()

    async def send(name: str, due_s: float) -> None:
        sent.append((name, due_s, clock.at_s))
        if name == "a":
            clock.at_s += 2.5  # the client itself is busy

    await send_open("abcd", [0.0, 1.0, 2.0, 4.0], send, clock=clock, start_s=0.0)

    assert sent == [("a", 0.0, 0.0), ("b", 1.0, 2.5), ("c", 2.0, 2.5), ("d", 4.0, 4.0)]


async def test_an_open_loop_ends_when_it_said_it_would() -> None:
    clock, gone = FakeClock(), list[str]()

    async def send(name: str, due_s: float) -> None:
        try:
            clock.at_s = due_s + 0.5
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            gone.append(name)
            raise

    async with asyncio.timeout(5):
        # The real waiting is 0.1 s: the fake clock stands at 1.5 and the end is at 1.6.
        task = asyncio.create_task(send_open("ab", [0.0, 1.0], send, clock=clock, start_s=0.0, grace_s=0.6))
        await asyncio.sleep(0.02)
        clock.at_s = 1.7
        assert await task == 2
    assert sorted(gone) == ["a", "b"]


async def test_what_a_late_client_could_not_send_by_the_end_is_left() -> None:
    clock = FakeClock()

    async def send(_: int, due_s: float) -> None:
        clock.at_s += 1.0  # each takes a second of the client, and they are due every 0.1 s

    sent = await send_open(
        range(10), [0.1 * i for i in range(10)], send, clock=clock, start_s=0.0, grace_s=2.0
    )

    # Due at 0, 0.1, ..., 0.9 with an end at 2.9: the third leaves at 2.0 and the next would at 3.0.
    assert sent == 3


async def test_a_closed_loop_stops_taking_work_when_its_time_is_up() -> None:
    clock, most, running = FakeClock(), 0, 0

    async def send(_: int) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        clock.at_s += 1.0
        running -= 1

    sent = await send_closed(iter(range(1000)), send, clients=3, clock=clock, end_s=6.0, grace_s=0.0)

    assert most == 3
    assert 6 <= sent <= 9


async def test_an_error_in_sending_is_raised_and_nothing_is_left_running() -> None:
    async def send(name: str, due_s: float) -> None:
        if name == "b":
            raise RuntimeError("broken on purpose")
        await asyncio.sleep(60)

    with pytest.RaisesGroup(RuntimeError):
        await send_open("ab", [0.0, 0.0], send, clock=FakeClock(), start_s=0.0)
