"""What one process of a run does: its share of the warm-up, its share of the load, its own record."""

import asyncio
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from decant.endpoint import Endpoint
from decant_bench.bench_config import BenchConfig
from decant_bench.driver import BenchClient, Counters, Driver, RequestShape
from decant_bench.pacing import MonotonicClock, send_closed, send_open
from decant_bench.records import Record
from decant_bench.self_check import LoopWatch, quiet_collector
from decant_bench.workload import Conversation


@dataclass(frozen=True, slots=True)
class Share:
    """Every `of`-th conversation from `number` on, and the clients that go with it."""

    number: int = 0
    of: int = 1

    def clients(self, clients: int) -> int:
        """How many of so many clients."""
        return clients // self.of + (self.number < clients % self.of)

    def places(self, n: int) -> range:
        """Which of so many conversations."""
        return range(self.number, n, self.of)


@dataclass(frozen=True, slots=True)
class Warmup:
    """What became of the warm-up: requests by kind, and the first failure's words."""

    outcomes: Counter[str]
    first_failure: str | None


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """What a process says of itself: its event loop's lags, in seconds, and its share of one core."""

    lags_s: "array[float]"
    cpu_share: float


class Sender:
    """Sends one share over one client; `counters` says how far it is, `on_record` gets every request once."""

    def __init__(
        self,
        config: BenchConfig,
        endpoint: Endpoint,
        client: BenchClient,
        *,
        share: Share,
        on_record: Callable[[Record], None],
    ) -> None:
        self.watch = LoopWatch()
        self._config = config
        self._client = client
        self._share = share
        self._clock = MonotonicClock()
        self._wake_collector: Callable[[], None] = lambda: None
        self._shape = _shape(config, endpoint)
        self._driver = Driver(client, self._shape, clock=self._clock, on_record=on_record)

    @property
    def counters(self) -> Counters:
        """How far the load is."""
        return self._driver.counters

    async def warm_up(self, conversations: Sequence[Conversation]) -> Warmup:
        """Sends the share of the warm-up; nothing of it is recorded."""
        outcomes: list[Record] = []
        driver = Driver(self._client, self._shape, clock=self._clock, on_record=outcomes.append)
        mine = [conversations[place] for place in self._share.places(len(conversations))]
        clients = max(1, self._share.clients(self._config.concurrency))
        await send_closed(mine, driver.send_free, clients=clients, clock=self._clock)
        # It takes a while, and the schedule begins soon after.
        self._wake_collector = quiet_collector()
        kinds = Counter(record.timing.error_kind or "completed" for record in outcomes)
        return Warmup(kinds, next((record.error for record in outcomes if record.error), None))

    async def send(
        self, conversations: Sequence[Conversation], offsets_s: Sequence[float] | None, *, start_s: float
    ) -> ProcessRecord:
        """Sends the share of the load; the schedule begins at `start_s`, for all processes of the machine."""
        try:
            async with self.watch:
                if offsets_s is None:
                    await self._send_closed(conversations, start_s)
                else:
                    await self._send_open(conversations, offsets_s, start_s)
        finally:
            self._wake_collector()
            self._clock.close()
        return ProcessRecord(self.watch.lags_s, self.watch.cpu_share)

    async def _send_closed(self, conversations: Sequence[Conversation], start_s: float) -> None:
        config, places = self._config, self._share.places(len(conversations))
        end_s = None if config.duration_s is None else start_s + config.duration_s

        async def send(place: int) -> None:
            await self._driver.send_free(conversations[place])

        await self._clock.sleep_until(start_s)
        clients = min(self._share.clients(config.concurrency), len(places))
        await send_closed(
            places, send, clients=clients, clock=self._clock, end_s=end_s, grace_s=config.drain_s
        )

    async def _send_open(
        self, conversations: Sequence[Conversation], offsets_s: Sequence[float], start_s: float
    ) -> None:
        places = self._share.places(len(conversations))
        mine_s = [offsets_s[place] for place in places]

        free = self._free()

        async def send(place: int, due_s: float) -> None:
            conversation, taken_up_s = conversations[place], self._clock.now_s()
            if free is None:
                await self._driver.send_due(conversation, due_s)
                return
            try:
                await free.acquire()
            except asyncio.CancelledError:
                self._driver.leave(conversation, due_s)
                raise
            try:
                await self._driver.send_due(conversation, due_s, taken_up_s=taken_up_s)
            finally:
                free.release()

        grace_s = self._config.drain_s
        sent = await send_open(places, mine_s, send, clock=self._clock, start_s=start_s, grace_s=grace_s)
        for place, offset_s in zip(places[sent:], mine_s[sent:], strict=True):
            self._driver.leave(conversations[place], start_s + offset_s)

    def _free(self) -> asyncio.Semaphore | None:
        most = self._config.in_flight
        return None if most is None else asyncio.Semaphore(self._share.clients(most))


def _shape(config: BenchConfig, endpoint: Endpoint) -> RequestShape:
    return RequestShape(
        model=endpoint.model,
        route=config.route,
        stream=config.stream,
        think_s=config.workload.think_s,
        extra=config.workload.extra,
        keeps_text=config.workload.tokenizer is not None,
    )
