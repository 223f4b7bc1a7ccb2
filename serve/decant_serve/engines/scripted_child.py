"""The child process of the scripted engine."""

import asyncio
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from decant.wire import ChatRequest, CompletionRequest
from decant_serve.answers import Answer, Choice, EngineTimings, Usage
from decant_serve.calls import EMBEDDINGS_PATH, PATHS
from decant_serve.calls import Route as RouteName
from decant_serve.disconnects import ClientGone, while_connected
from decant_serve.embeddings import EmbeddingRequest
from decant_serve.engines.scripted import Script, ScriptedAnswer, read_script
from decant_serve.openai_errors import ApiFault, refusal

_CRASH_CODE = 70


class _CutConnection(Exception):
    """Ends a stream without its end, as a dying server does."""


class ScriptedApp:
    """Answers each request by the first answer that matches it."""

    def __init__(self, script: Script, model: str) -> None:
        self._script = script
        self._model = model
        self._slots = asyncio.Semaphore(script.parallel) if script.parallel else None

    def routes(self) -> list[Route]:
        """The engine's HTTP surface."""
        return [
            Route("/health", _health),
            Route(PATHS["chat"], self._chat, methods=["POST"]),
            Route(PATHS["completions"], self._completion, methods=["POST"]),
            Route(EMBEDDINGS_PATH, self._embeddings, methods=["POST"]),
        ]

    async def _chat(self, request: Request) -> Response:
        body = ChatRequest.model_validate(await request.json())
        return await self._answer(request, "chat", body, body.messages[-1].text())

    async def _completion(self, request: Request) -> Response:
        body = CompletionRequest.model_validate(await request.json())
        return await self._answer(request, "completions", body, str(body.prompt))

    async def _embeddings(self, request: Request) -> Response:
        """Each input's own direction: the same text gives the same vector, always."""
        inputs = EmbeddingRequest.model_validate(await request.json()).inputs
        data = [{"object": "embedding", "index": i, "embedding": _direction(o)} for i, o in enumerate(inputs)]
        tokens = sum(len(one.split()) if isinstance(one, str) else len(one) for one in inputs)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": self._model, "data": data, "usage": usage})

    async def _answer(
        self, request: Request, route: RouteName, body: ChatRequest | CompletionRequest, text: str
    ) -> Response:
        scripted = self._script.answer_to(text)
        if scripted is None:
            return refusal("no answer in the script matches this request").response()
        if scripted.status != 200:
            await asyncio.sleep(scripted.ttft_s)
            return ApiFault(scripted.status, scripted.message, headers=scripted.headers).response()
        play = Play(scripted.within(body.token_limit), Answer(route, self._model))
        if body.stream:
            events = self._stream(play, wants_usage=body.include_usage)
            return StreamingResponse(events, media_type="text/event-stream")
        try:
            waited_s = await while_connected(request, self._wait(play.scripted))
        except ClientGone:
            return Response(status_code=499)
        return JSONResponse(play.whole(waited_s))

    async def _wait(self, scripted: ScriptedAnswer) -> float:
        asked_s = time.perf_counter()
        async with self._slots or nullcontext():
            waited_s = time.perf_counter() - asked_s
            await asyncio.sleep(scripted.send_times_s()[-1])
            _end(scripted)
        return waited_s

    async def _stream(self, play: "Play", *, wants_usage: bool) -> AsyncIterator[bytes]:
        asked_s = time.perf_counter()
        async with self._slots or nullcontext():
            taken_up_s = time.perf_counter()
            yield play.answer.opening(0)
            for at_s, event in play.events():
                await _sleep_until(taken_up_s + at_s)
                yield event
            _end(play.scripted)
            yield play.end(taken_up_s - asked_s, wants_usage=wants_usage)


@dataclass(frozen=True, slots=True)
class Play:
    """One scripted answer on its way to a client."""

    scripted: ScriptedAnswer
    answer: Answer

    def usage(self) -> Usage:
        """Every event is one token."""
        return Usage(self.scripted.prompt_tokens, len(self.scripted.reasoning) + len(self.scripted.chunks))

    def events(self) -> list[tuple[float, bytes]]:
        """When each event goes out, and the event."""
        reasoning = [self.answer.piece(0, text, is_reasoning=True) for text in self.scripted.reasoning]
        content = [self.answer.piece(0, text) for text in self.scripted.chunks]
        return list(zip(self.scripted.send_times_s(), [*reasoning, *content], strict=False))

    def timings(self, waited_s: float) -> EngineTimings:
        """The script's own times, after the wait for a slot: what a measurement should find."""
        times_s = self.scripted.send_times_s()
        return EngineTimings(waited_s, times_s[0], times_s[-1] - times_s[0])

    def end(self, waited_s: float, *, wants_usage: bool) -> bytes:
        """The last events."""
        finish = self.answer.piece(0, "", finish_reason=self.scripted.finish_reason)
        return finish + self.answer.closing(self.usage() if wants_usage else None, self.timings(waited_s))

    def whole(self, waited_s: float) -> dict[str, Any]:
        """The answer that is not streamed."""
        reasoning = "".join(self.scripted.reasoning) or None
        choice = Choice("".join(self.scripted.chunks), self.scripted.finish_reason, reasoning=reasoning)
        return self.answer.whole([choice], self.usage(), self.timings(waited_s))


def _direction(given: Any) -> list[float]:
    """A vector of length 1 out of the input's SHA-256."""
    digest = hashlib.sha256(json.dumps(given).encode()).digest()
    values = [byte - 127.5 for byte in digest]
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]


def _end(scripted: ScriptedAnswer) -> None:
    if scripted.end == "crash":
        print("the script ends this process", file=sys.stderr, flush=True)
        os._exit(_CRASH_CODE)
    if scripted.end == "cut":
        raise _CutConnection


async def _sleep_until(at_s: float) -> None:
    delay_s = at_s - time.perf_counter()
    if delay_s > 0:
        await asyncio.sleep(delay_s)


async def _health(_: Request) -> Response:
    return Response(status_code=200)


def main() -> None:
    """Serves the script named in the first argument until SIGTERM, on a socket or on a port of loopback."""
    arguments = json.loads(sys.argv[1])
    app = ScriptedApp(read_script(Path(arguments["script"])), arguments["model"])
    uvicorn.run(
        Starlette(routes=app.routes()),
        uds=arguments.get("socket"),
        port=arguments.get("port", 0),
        # libuv's timers are no finer than the loop of the standard library, and later by up to a millisecond.
        loop="asyncio",
        log_level="warning",
        timeout_keep_alive=75,
    )


if __name__ == "__main__":
    main()
