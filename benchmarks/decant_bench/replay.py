"""Replaying requests against an endpoint: on a fixed schedule (open loop) or one after another (closed loop).

A schedule is never moved: a request that is late is sent at once, and its response latency counts from the
time at which it was due.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from decant.client import ApiError, Completion
from decant.timing import RequestTiming
from decant_bench.pacing import HEAD_START_S, MonotonicClock, send_closed, send_open


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
    results: dict[int, Exchange] = {}

    async def send(index: int, due_s: float) -> None:
        results[index] = await _exchange(client, requests[index], due_s, on_done)

    with closing(MonotonicClock()) as clock:
        start_s = clock.now_s() + HEAD_START_S
        await send_open(range(len(requests)), offsets_s, send, clock=clock, start_s=start_s)
    return [results[index] for index in range(len(requests))]


async def replay_closed(
    client: ChatClient, requests: Sequence[ReplayRequest], *, clients: int, on_done: OnDone
) -> list[Exchange]:
    """Keeps `clients` requests in flight until all have been sent; results in request order."""
    results: dict[int, Exchange] = {}

    async def send(index: int) -> None:
        results[index] = await _exchange(client, requests[index], None, on_done)

    indices = range(len(requests))
    await send_closed(indices, send, clients=min(clients, len(requests)), clock=MonotonicClock())
    return [results[index] for index in indices]


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
