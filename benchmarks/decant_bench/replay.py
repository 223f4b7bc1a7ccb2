"""Replaying requests against an endpoint: on a fixed schedule (open loop) or one after another (closed loop).

A schedule is never moved: a request that is late is sent at once, and its response latency counts from the
time at which it was due.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from decant.client import ApiError, Completion
from decant.timing import RequestTiming

_HEAD_START_S = 0.02
# asyncio rounds timers up to the next millisecond; the last one is waited out turn by turn.
_SPIN_S = 0.001


class ChatClient(Protocol):
    """What a replay needs of a client; `decant.client.OpenAIClient` is one."""

    async def chat(
        self,
        request: Mapping[str, Any],
        *,
        stream: bool = True,
        intended_s: float | None = None,
        request_id: str | None = None,
    ) -> Completion:
        """One chat request; ApiError when it fails."""
        ...


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """One chat request, ready to send."""

    request_id: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and what became of it: exactly one of `completion` and `error` is set."""

    request_id: str
    timing: RequestTiming
    completion: Completion | None
    error: ApiError | None


OnDone = Callable[[Exchange], None]


async def replay_open(
    client: ChatClient, requests: Sequence[ReplayRequest], offsets_s: Sequence[float], *, on_done: OnDone
) -> list[Exchange]:
    """Sends each request at its offset, whatever became of those before it; results in request order."""
    start_s = time.perf_counter() + _HEAD_START_S
    tasks: list[asyncio.Task[Exchange]] = []
    async with asyncio.TaskGroup() as group:
        for request, offset_s in zip(requests, offsets_s, strict=True):
            due_s = start_s + offset_s
            await _sleep_until(due_s)
            tasks.append(group.create_task(_exchange(client, request, due_s, on_done)))
    return [task.result() for task in tasks]


async def replay_closed(
    client: ChatClient, requests: Sequence[ReplayRequest], *, clients: int, on_done: OnDone
) -> list[Exchange]:
    """Keeps `clients` requests in flight until all have been sent; results in request order."""
    waiting = iter(enumerate(requests))
    results: dict[int, Exchange] = {}

    async def work() -> None:
        for index, request in waiting:
            results[index] = await _exchange(client, request, None, on_done)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(clients, len(requests))):
            group.create_task(work())
    return [results[index] for index in range(len(requests))]


async def _sleep_until(due_s: float) -> None:
    remaining_s = due_s - time.perf_counter()
    if remaining_s > _SPIN_S:
        await asyncio.sleep(remaining_s - _SPIN_S)
    # Nothing sets an event at a point in time more finely than the timer above.
    while time.perf_counter() < due_s:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def _exchange(
    client: ChatClient, request: ReplayRequest, intended_s: float | None, on_done: OnDone
) -> Exchange:
    started_s = time.perf_counter()
    try:
        completion = await client.chat(
            request.body, stream=True, intended_s=intended_s, request_id=request.request_id
        )
        exchange = Exchange(request.request_id, completion.timing, completion, None)
    except ApiError as error:
        timing = error.timing or RequestTiming(
            request_id=request.request_id,
            intended_s=intended_s,
            actual_s=started_s,
            status=error.status,
            error_kind=error.kind,
        )
        exchange = Exchange(request.request_id, timing, None, error)
    on_done(exchange)
    return exchange


@dataclass(frozen=True, slots=True)
class Saturation:
    """What a closed-loop burst showed: completed requests per second while every client was busy.

    `requests_per_s` is None when nothing completed in that time. `wall_s` spans the whole burst.
    """

    requests_per_s: float | None
    n: int
    failed: int
    clients: int
    wall_s: float
    cached_prompt_share: float | None


def measure_saturation(exchanges: Sequence[Exchange], *, clients: int) -> Saturation:
    """The capacity that a closed-loop burst shows.

    Counted from the first send to the last: until then no client was ever idle, and the emptying at the end
    does not dilute the rate. For a server that fails none this is n - clients completions over their time.
    """
    timings = [exchange.timing for exchange in exchanges]
    done = [timing for timing in timings if timing.e2e_s is not None and timing.ok]
    first_s = min(timing.actual_s for timing in timings)
    last_s = max(timing.actual_s for timing in timings)
    ended = [timing.actual_s + (timing.e2e_s or 0.0) for timing in done]
    in_time = sum(end <= last_s for end in ended)
    return Saturation(
        requests_per_s=in_time / (last_s - first_s) if in_time and last_s > first_s else None,
        n=len(timings),
        failed=len(timings) - len(done),
        clients=clients,
        wall_s=max(ended, default=last_s) - first_s,
        cached_prompt_share=cached_prompt_share(done),
    )


def cached_prompt_share(timings: Sequence[RequestTiming]) -> float | None:
    """The share of prompt tokens that the server took from its cache; None where it does not say."""
    known = [t for t in timings if t.prompt_tokens is not None and t.cached_tokens is not None]
    prompt_tokens = sum(timing.prompt_tokens or 0 for timing in known)
    return sum(timing.cached_tokens or 0 for timing in known) / prompt_tokens if prompt_tokens else None
