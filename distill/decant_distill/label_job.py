"""The labeling job: every request of a dataset through the store, each answered once.

The store is the job's memory: what it holds is never asked again, and a killed job loses what was in flight.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from decant.api_error import ApiError
from decant.client import Completion
from decant.errors import DecantError, StageError
from decant.lease import process_owner
from decant.store import Answer, Label, RequestStore
from decant_distill.key_set import KeySet
from decant_distill.label_plan import asks_in, plan
from decant_distill.label_record import Recorder
from decant_distill.label_requests import Job
from decant_distill.label_send import Sender
from decant_distill.label_spend import Purse
from decant_distill.label_topk import keep_places, places_of
from decant_distill.label_watch import Watch

T = TypeVar("T")

# A worker that is lost with its machine blocks its requests for so long; one that lives renews them in time.
_LEASE_S = 120.0
_RENEWED_AFTER_S = 30.0
_POLL_S = 0.5
# Rows leased at once, by concurrency: few calls to the store, and little that another worker has to wait for.
_ROUNDS_LEASED = 4
_OPEN = ("pending", "leased")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What a job holds before anything is sent; equal rows are one request.

    `open` are to be asked. `paid_usd` and `latency_s` are what its earlier answers cost and how long they
    took, one after another.
    """

    requests: int
    reused: int
    open: int
    paid_usd: float
    latency_s: float


class Counter(Protocol):
    """What shows progress."""

    def advance(self, n: int = 1, **extra: object) -> None:
        """Counts `n` more."""


def register(job: Job, store: RequestStore, *, reopen: bool = True) -> Registered:
    """Puts the job's requests into the store; with `reopen`, those without an answer are asked again.

    An answer that was paid for is never asked for again, be it cut or without a marker.
    """
    seen, prompt_version = KeySet(), job.prompt_version
    reused = unanswered = 0
    paid_usd = latency_s = 0.0
    for chunk in plan(job, store.get_many):
        fresh = {ask.key: ask for ask in asks_in(chunk) if seen.add(ask.key)}
        standing = store.standing(fresh)
        new = [ask.to_store(job.teacher, prompt_version) for key, ask in fresh.items() if key not in standing]
        store.add(new)
        known = standing.values()
        failed = [key for key, one in standing.items() if one.status == "failed"]
        if reopen:
            store.reopen(failed)
        reused += sum(one.status == "done" for one in known)
        unanswered += len(new) + (len(failed) if reopen else 0)
        unanswered += sum(one.status in _OPEN for one in known)
        paid_usd += sum(one.cost_usd or 0.0 for one in known)
        latency_s += sum(one.latency_s or 0.0 for one in known)
    return Registered(
        requests=len(seen), reused=reused, open=unanswered, paid_usd=paid_usd, latency_s=latency_s
    )


def wanted_keys(
    job: Job, store: RequestStore, only: Collection[str] | None = None
) -> Iterator[Collection[str]]:
    """The keys of the job's requests, some hundred at a time; with `only`, those of these."""
    for chunk in plan(job, store.get_many):
        keys = dict.fromkeys(ask.key for ask in asks_in(chunk))
        yield [key for key in keys if only is None or key in only]


class Dispatcher:
    """Sends a job's open requests and records each answer before the next request takes its place."""

    def __init__(
        self,
        *,
        store: RequestStore,
        sender: Sender,
        purse: Purse,
        watch: Watch,
        progress: Counter,
    ) -> None:
        self._store = store
        self._sender = sender
        self._purse = purse
        self._watch = watch
        self._progress = progress
        self._owner = process_owner()
        self._held: set[str] = set()
        self._recorder = Recorder(store)
        self._calls: set[asyncio.Task[Any]] = set()

    async def run(
        self, job: Job, wanted: Callable[[], Iterator[Collection[str]]], *, concurrency: int
    ) -> None:
        """Returns when every wanted request has an answer or a failure of its own.

        `wanted` gives their keys, anew at each call. EndpointError when the endpoint is why no answers come,
        StageError when the budget is spent; what was answered is in the store then.
        """
        queue: asyncio.Queue[Label | None] = asyncio.Queue(maxsize=concurrency)
        try:
            async with asyncio.timeout(self._purse.remaining_s), asyncio.TaskGroup() as tasks:
                for _ in range(concurrency):
                    tasks.create_task(self._work(job, queue))
                renewing = tasks.create_task(self._renew())
                await self._feed(wanted, queue, concurrency)
                renewing.cancel()
        except TimeoutError:
            raise self._out_of_money() from None
        except BaseExceptionGroup as group:
            raise _first_decant_error(group) or group from None
        finally:
            await asyncio.gather(*self._calls, return_exceptions=True)
            await self._recorder.flush()
            await asyncio.to_thread(self._give_back)

    async def _feed(
        self,
        wanted: Callable[[], Iterator[Collection[str]]],
        queue: asyncio.Queue[Label | None],
        concurrency: int,
    ) -> None:
        """Leases what is open, chunk by chunk, until nothing is; waits for what another process holds."""
        while True:
            chunks, is_held_elsewhere = wanted(), False
            while (keys := await asyncio.to_thread(next, chunks, None)) is not None:
                taken = await self._lease_all(keys, queue, _ROUNDS_LEASED * concurrency)
                if taken < len(keys):
                    is_held_elsewhere |= await asyncio.to_thread(self._is_held_elsewhere, keys)
            await queue.join()
            if not is_held_elsewhere:
                break
            await asyncio.sleep(_POLL_S)
        for _ in range(concurrency):
            await queue.put(None)

    async def _lease_all(
        self, keys: Collection[str], queue: asyncio.Queue[Label | None], at_once: int
    ) -> int:
        """Queues those of the requests that can be leased; returns how many."""
        taken = 0
        while True:
            leased = await self._in_thread(self._lease, at_once, keys)
            for label in leased:
                await queue.put(label)
            taken += len(leased)
            if len(leased) < at_once:
                return taken

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEWED_AFTER_S)
            await self._in_thread(self._store.renew, self._owner, _LEASE_S)

    def _lease(self, count: int, keys: Collection[str]) -> list[Label]:
        leased = self._store.lease(count, self._owner, _LEASE_S, keys=keys)
        self._held.update(label.key for label in leased)
        return leased

    def _is_held_elsewhere(self, keys: Collection[str]) -> bool:
        standing = self._store.standing(keys)
        return any(one.status in _OPEN and key not in self._held for key, one in standing.items())

    async def _work(self, job: Job, queue: asyncio.Queue[Label | None]) -> None:
        while (leased := await queue.get()) is not None:
            await self._ask(job, leased)
            queue.task_done()

    async def _ask(self, job: Job, leased: Label) -> None:
        request = leased.request
        if not await self._purse.reserve(request):
            raise self._out_of_money()
        try:
            completion = await self._sender.send(request)
        except ApiError as error:
            self._purse.release(request)
            self._watch.failed(error)
            await self._record(leased.key, error)
        else:
            cost_usd = self._purse.settle(request, completion.usage)
            answer = _answer(job, completion, cost_usd)
            if job.top_logprobs and completion.text:
                places = places_of(completion.logprobs, model=job.teacher.model)
                await self._in_thread(keep_places, self._store, leased, answer.response, places)
            await self._record(leased.key, answer)
        self._progress.advance(1)

    async def _record(self, key: str, outcome: Answer | ApiError) -> None:
        await self._recorder.record(key, outcome)
        self._held.discard(key)

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        # A thread cannot be cancelled: shielded, it ends what it does to the store before `run` returns.
        task = asyncio.create_task(asyncio.to_thread(call, *arguments))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return await asyncio.shield(task)

    def _give_back(self) -> None:
        for key in self._held:
            self._store.fail(key, "interrupted", "the job stopped before the answer came", retryable=True)

    def _out_of_money(self) -> StageError:
        return StageError(
            f"the budget does not pay another request after ${self._purse.spent_usd:.6g}; "
            "what was answered is kept: raise budget_usd and run again to go on"
        )


def _answer(job: Job, completion: Completion, cost_usd: float | None) -> Answer:
    return job.answer(
        completion.text,
        completion.reasoning,
        finish_reason=completion.finish_reason,
        usage=completion.usage,
        cost_usd=cost_usd,
        latency_s=completion.timing.e2e_s,
        logprobs=completion.logprobs,
    )


def _first_decant_error(group: BaseExceptionGroup[BaseException]) -> DecantError | None:
    for error in group.exceptions:
        if isinstance(error, DecantError):
            return error
    return None
