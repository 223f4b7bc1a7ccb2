import asyncio
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest

from decant.api_error import ApiError
from decant.client import Completion
from decant.exchange import Route
from decant.timing import RequestTiming
from decant.wire import ErrorBody
from decant_bench.driver import Driver, RequestShape
from decant_bench.pacing import send_closed, send_open
from decant_bench.records import Record
from decant_bench.workload import Conversation, Turn


class FakeClock:
    """Time stands still unless somebody sleeps until a time or works."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def now_s(self) -> float:
        return self.at_s

    async def sleep_until(self, due_s: float) -> None:
        self.at_s = max(self.at_s, due_s)


class FakeClient:
    """Answers after `takes_s` of the fake clock; fails what contains `bad`; never answers `silent`."""

    def __init__(self, clock: FakeClock, *, takes_s: float = 1.0) -> None:
        self.clock, self.takes_s = clock, takes_s
        self.asked: list[Mapping[str, Any]] = []

    async def chat(
        self,
        request: Mapping[str, Any],
        *,
        stream: bool = True,
        intended_s: float | None = None,
        request_id: str | None = None,
    ) -> Completion:
        self.asked.append(request)
        sent_s, content = self.clock.at_s, request["messages"][-1]["content"]
        if content == "silent":
            await asyncio.Event().wait()
        if content == "bad":
            raise ApiError("refused", kind="auth", error=ErrorBody(message="refused"), status=401)
        self.clock.at_s += self.takes_s
        timing = RequestTiming(
            request_id=request_id or "", intended_s=intended_s, actual_s=sent_s, e2e_s=self.takes_s
        )
        return Completion(
            text="fine",
            reasoning=None,
            finish_reason="stop",
            usage=None,
            logprobs=None,
            timing=timing,
            model=None,
            headers={},
        )

    complete = chat


def conversation(*questions: str, index: int = 0) -> Conversation:
    return Conversation(index, (), tuple(Turn(question, 8, 1) for question in questions))


def driver(client: FakeClient, *, think_s: float = 0.0, route: Route = "chat") -> tuple[Driver, list[Record]]:
    records: list[Record] = []
    shape = RequestShape("m", route, True, think_s, {"ignore_eos": True}, False)
    return Driver(client, shape, clock=client.clock, on_record=records.append), records


async def test_a_late_client_is_charged_in_the_response_and_named_in_the_schedule_error() -> None:
    clock = FakeClock()
    sender, records = driver(FakeClient(clock))
    conversations = [conversation("q", index=index) for index in range(3)]
    # Each takes a second of the only thread, and they are due every half second.
    await send_open(conversations, [0.0, 0.5, 1.0], sender.send_due, clock=clock, start_s=100.0)

    assert [record.schedule_error_s for record in records] == pytest.approx([0.0, 0.5, 1.0])
    assert [record.timing.response_s for record in records] == pytest.approx([1.0, 1.5, 2.0])
    assert [record.timing.service_s for record in records] == pytest.approx([1.0, 1.0, 1.0])


async def test_a_later_turn_is_due_after_a_pause_for_thought() -> None:
    sender, records = driver(FakeClient(FakeClock()), think_s=3.0)
    await sender.send_due(conversation("one", "two"), 100.0)

    assert [record.timing.intended_s for record in records] == [100.0, 104.0]


async def test_what_the_end_of_the_run_cuts_off_is_recorded_turn_by_turn() -> None:
    sender, records = driver(FakeClient(FakeClock()))
    task = asyncio.create_task(sender.send_due(conversation("fine", "silent", "three"), 100.0))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait({task})

    kinds = [record.timing.error_kind for record in records]
    assert kinds == [None, "unfinished", "turn_skipped"]
    assert [record.was_sent for record in records] == [True, True, False]
    assert sender.counters.in_flight == 0


async def test_every_request_carries_the_extra_fields_and_an_id_of_its_own() -> None:
    client = FakeClient(FakeClock())
    sender, records = driver(client)
    await send_closed(
        [conversation("a", "b"), conversation("bad", index=1)],
        sender.send_free,
        clients=1,
        clock=client.clock,
    )

    assert all(body["ignore_eos"] is True and body["model"] == "m" for body in client.asked)
    assert len({record.timing.request_id for record in records}) == 3
    assert sender.counters.errors == {"auth": 1}


async def test_a_long_run_keeps_nothing_of_what_it_has_recorded() -> None:
    client = FakeClient(FakeClock())
    shape = RequestShape("m", "chat", True, 0.0, {}, False)
    seen = 0

    def count(_: Record) -> None:
        nonlocal seen
        seen += 1

    client.asked = _Forgetful()
    sender = Driver(client, shape, clock=client.clock, on_record=count)
    one = conversation("q")
    await send_closed((one for _ in range(200)), sender.send_free, clients=4, clock=client.clock)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    await send_closed((one for _ in range(4000)), sender.send_free, clients=4, clock=client.clock)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert seen == 4200
    assert grown < 50_000, "less than a byte of every ten that a record has"


class _Forgetful(list[Mapping[str, Any]]):
    def append(self, _: Mapping[str, Any], /) -> None:
        """Keeps nothing, so that only the driver's own memory shows."""
