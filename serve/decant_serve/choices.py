"""Several answers to one request, from an engine that gives and counts one: asked for side by side, merged.

Each is a request of its own to the engine, with the seed moved on by one; the client sees one answer under
one id, whose usage counts the prompt once and the completions together.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from decant.wire import DONE, sse_event
from decant_serve.engine_client import EngineAnswer
from decant_serve.openai_errors import ApiFault
from decant_serve.passage import whole_events

Opened = Callable[[Mapping[str, Any]], AbstractAsyncContextManager[EngineAnswer]]
Emit = Callable[[bytes], Awaitable[None]]

_SEEDS = 2**32


def single_bodies(body: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The requests for one answer each."""
    bodies: list[dict[str, Any]] = []
    for index in range(count):
        one = {**body, "n": 1}
        if body.get("seed") is not None:
            one["seed"] = (body["seed"] + index) % _SEEDS
        if body.get("stream"):
            one["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        bodies.append(one)
    return bodies


async def stream_choices(bodies: Sequence[Mapping[str, Any]], open_answer: Opened, emit: Emit) -> None:
    """Emits the events of all answers as they come, their usage and the end; the first fault ends all."""
    merged = _Merged()
    # A chunk is written whole before the next: the client's stream has one writer at a time.
    writing = asyncio.Lock()

    async def follow(index: int, body: Mapping[str, Any]) -> None:
        async with open_answer(body) as answer:
            async for event in whole_events(answer.parts()):
                passed = merged.take(index, event)
                if passed:
                    async with writing:
                        await emit(passed)

    await _together([follow(index, body) for index, body in enumerate(bodies)])
    if merged.ended < len(bodies):
        raise ApiFault(502, "the engine ended its answer early", type="server_error", code="stream_broken")
    await emit(merged.closing())


async def whole_choices(
    bodies: Sequence[Mapping[str, Any]], open_answer: Opened, received: Callable[[], None]
) -> bytes:
    """The body of all answers together; `received` is called as each one comes."""
    answers: list[dict[str, Any]] = [{}] * len(bodies)

    async def follow(index: int, body: Mapping[str, Any]) -> None:
        async with open_answer(body) as answer:
            answers[index] = json.loads(await answer.whole())
            received()

    await _together([follow(index, body) for index, body in enumerate(bodies)])
    choices = [{**answer["choices"][0], "index": index} for index, answer in enumerate(answers)]
    slowest = max(answers, key=_engine_ms)
    timed = {"timings": slowest["timings"]} if "timings" in slowest else {}
    usage = summed_usage([answer["usage"] for answer in answers])
    return json.dumps({**answers[0], "choices": choices, "usage": usage, **timed}).encode()


def summed_usage(usages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The prompt once, the completions together."""
    completion_tokens = sum(usage["completion_tokens"] for usage in usages)
    prompt_tokens: int = usages[0]["prompt_tokens"]
    return {
        **usages[0],
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class _Merged:
    """The chunks of several streams as those of one."""

    def __init__(self) -> None:
        self._common: dict[str, Any] = {}
        self._usages: dict[int, Mapping[str, Any]] = {}
        self._slowest: Mapping[str, Any] = {}
        self.ended = 0

    def take(self, index: int, event: bytes) -> bytes:
        """One event of one stream as the client gets it; ApiFault for an error inside the stream."""
        text = event.partition(b"data:")[2].strip()
        if text == DONE.encode():
            self.ended += 1
            return b""
        if not text:
            return b""
        chunk: dict[str, Any] = json.loads(text)
        if "error" in chunk:
            message = str(chunk["error"].get("message", "the engine failed"))
            raise ApiFault(502, message, type="server_error", code="engine_error")
        return self._renumbered(index, chunk)

    def _renumbered(self, index: int, chunk: dict[str, Any]) -> bytes:
        usage, timings = chunk.pop("usage", None), chunk.pop("timings", None)
        if usage:
            self._usages[index] = usage
        if timings and _engine_ms({"timings": timings}) >= _engine_ms({"timings": self._slowest}):
            self._slowest = timings
        if not chunk["choices"]:
            return b""
        self._common = self._common or {name: chunk[name] for name in chunk if name != "choices"}
        choices = [{**choice, "index": index} for choice in chunk["choices"]]
        return sse_event({**self._common, "choices": choices})

    def closing(self) -> bytes:
        """The usage of all of them, and the end."""
        usage = {"usage": summed_usage([self._usages[index] for index in sorted(self._usages)])}
        timings = {"timings": self._slowest} if self._slowest else {}
        return sse_event({**self._common, "choices": [], **usage, **timings}) + sse_event(DONE)


def _engine_ms(answer: Mapping[str, Any]) -> float:
    timings: Mapping[str, Any] = answer.get("timings") or {}
    return sum(timings.get(name) or 0.0 for name in ("prompt_ms", "predicted_ms"))


async def _together(work: Sequence[Any]) -> None:
    """All of it, or the first failure with the rest cancelled."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
