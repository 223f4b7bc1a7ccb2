"""The child process of the scripted engine: over the gateway's socket, or on a port of its own.

With a `port` in its JSON argument in place of a `socket` it answers on loopback, without a gateway: the known
delays that benchmark clients are compared on.
"""

import asyncio
import hashlib
import json
import math
import os
import signal
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from decant.timer import Timer
from decant.wire import ChatRequest, CompletionRequest
from decant_serve.answers import Answer, Choice, EngineTimings, Usage
from decant_serve.calls import EMBEDDINGS_PATH, PATHS
from decant_serve.calls import Route as RouteName
from decant_serve.embeddings import EmbeddingRequest
from decant_serve.engines.scripted import Script, ScriptedAnswer, read_script
from decant_serve.engines.timed_http import LAST_CHUNK, Exchange, chunk, serve
from decant_serve.openai_errors import ApiFault, refusal

_CRASH_CODE = 70
_MOST_SENT = 20_000
_ROUTES: Mapping[str, RouteName] = {path: route for route, path in PATHS.items()}


class ScriptedApp:
    """Answers each request by the first answer that matches it; `handle` takes the exchanges of a server."""

    def __init__(self, script: Script, model: str) -> None:
        self._script = script
        self._model = model
        self._timer = Timer()
        self._sent: deque[Sent] = deque(maxlen=_MOST_SENT)
        self._free = script.parallel
        self._waiting: deque[Playing] = deque()

    def handle(self, exchange: Exchange) -> None:
        """Answers now, or plans when."""
        request = exchange.request
        if request.method == "GET":
            self._tell(exchange)
            return
        route = _ROUTES.get(request.path)
        try:
            if route is not None:
                self._play(exchange, route, *_read(route, request.body))
            elif request.path == EMBEDDINGS_PATH:
                exchange.answer(200, json.dumps(_embeddings(request.body, self._model)).encode())
            else:
                exchange.answer(404, ApiFault(404, f"no such route: {request.path}").body())
        except (ValidationError, ValueError) as error:
            exchange.answer(400, refusal(f"not a request: {' '.join(str(error).split())[:200]}").body())

    def _play(
        self, exchange: Exchange, route: RouteName, body: ChatRequest | CompletionRequest, text: str
    ) -> None:
        request = exchange.request
        scripted = self._script.answer_to(text)
        if scripted is None:
            exchange.answer(400, refusal("no answer in the script matches this request").body())
        elif scripted.status != 200:
            fault = ApiFault(scripted.status, scripted.message)
            answer = partial(exchange.answer, scripted.status, fault.body(), scripted.headers)
            self._timer.at(request.arrived_s + scripted.ttft_s, answer)
        else:
            play = Play(scripted.within(body.token_limit), Answer(route, self._model))
            self._take(Playing(self, exchange, play, body.stream, body.include_usage))

    def at(self, due_s: float, step: Callable[[], None]) -> None:
        """Calls the step when it is due."""
        self._timer.at(due_s, step)

    def remember(self, sent: "Sent") -> None:
        """Keeps when an answer's tokens left."""
        self._sent.append(sent)

    def left(self, playing: "Playing") -> None:
        """An answer has ended or its client is gone: its slot goes to the one that waits longest."""
        if playing in self._waiting:
            self._waiting.remove(playing)
        elif self._waiting:
            self._waiting.popleft().start(time.perf_counter())
        elif self._free is not None:
            self._free += 1

    def _take(self, playing: "Playing") -> None:
        if self._free is None:
            playing.start(playing.arrived_s)
        elif self._free:
            self._free -= 1
            playing.start(playing.arrived_s)
        else:
            self._waiting.append(playing)

    def _tell(self, exchange: Exchange) -> None:
        path = exchange.request.path
        if path == "/health":
            exchange.answer(200, b"{}")
        elif path == "/v1/models":
            listed = {"id": self._model, "object": "model", "created": 0, "owned_by": "decant"}
            exchange.answer(200, json.dumps({"object": "list", "data": [listed]}).encode())
        elif path == "/sent":
            exchange.answer(200, json.dumps(self._told()).encode())
        else:
            exchange.answer(404, ApiFault(404, f"no such route: {path}").body())

    def _told(self) -> list[dict[str, Any]]:
        # What was sent since it was last asked: the truth that a client's stamps are compared with.
        sent, self._sent = self._sent, deque(maxlen=_MOST_SENT)
        return [asdict(each) for each in sent]


def _read(route: RouteName, body: bytes) -> tuple[ChatRequest | CompletionRequest, str]:
    if route == "completions":
        asked = CompletionRequest.model_validate_json(body)
        return asked, str(asked.prompt)
    chat = ChatRequest.model_validate_json(body)
    return chat, chat.messages[-1].text()


def _embeddings(body: bytes, model: str) -> dict[str, Any]:
    inputs = EmbeddingRequest.model_validate_json(body).inputs
    vectors = [{"object": "embedding", "index": i, "embedding": _direction(o)} for i, o in enumerate(inputs)]
    tokens = sum(len(one.split()) if isinstance(one, str) else len(one) for one in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": model, "data": vectors, "usage": usage}


def _direction(given: Any) -> list[float]:
    """A vector of length 1 out of the input's SHA-256: the same text gives the same one, always."""
    digest = hashlib.sha256(json.dumps(given).encode()).digest()
    values = [byte - 127.5 for byte in digest]
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]


@dataclass(frozen=True, slots=True)
class Sent:
    """When a request arrived and its answer's tokens left, on `time.perf_counter`, and when they were due."""

    request_id: str
    arrived_s: float
    due_s: tuple[float, ...]
    sent_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Play:
    """One scripted answer on its way to a client."""

    scripted: ScriptedAnswer
    answer: Answer

    def usage(self) -> Usage:
        """Every event is one token."""
        return Usage(self.scripted.prompt_tokens, len(self.scripted.reasoning) + len(self.scripted.chunks))

    def events(self) -> list[tuple[float, bytes]]:
        """When each event goes out, and the event; the last one says why the answer ends."""
        scripted = self.scripted
        texts = [(text, True) for text in scripted.reasoning] + [(text, False) for text in scripted.chunks]
        last = len(texts) - 1
        pieces = [
            self.answer.piece(
                0,
                text,
                finish_reason=scripted.finish_reason if index == last and scripted.end == "done" else None,
                is_reasoning=is_reasoning,
            )
            for index, (text, is_reasoning) in enumerate(texts)
        ]
        return list(zip(scripted.send_times_s(), pieces, strict=False))

    def timings(self, waited_s: float) -> EngineTimings:
        """The script's own times, after the wait for a slot: what a measurement should find."""
        times_s = self.scripted.send_times_s()
        return EngineTimings(waited_s, times_s[0], times_s[-1] - times_s[0])

    def end(self, waited_s: float, *, wants_usage: bool) -> bytes:
        """The last events."""
        empty = not (self.scripted.reasoning or self.scripted.chunks)
        finish = self.answer.piece(0, "", finish_reason=self.scripted.finish_reason) if empty else b""
        return finish + self.answer.closing(self.usage() if wants_usage else None, self.timings(waited_s))

    def whole(self, waited_s: float) -> dict[str, Any]:
        """The answer that is not streamed."""
        reasoning = "".join(self.scripted.reasoning) or None
        choice = Choice("".join(self.scripted.chunks), self.scripted.finish_reason, reasoning=reasoning)
        return self.answer.whole([choice], self.usage(), self.timings(waited_s))


class Playing:
    """A play in progress: each of its events leaves when it is due, counted from when it was taken up."""

    def __init__(
        self, app: ScriptedApp, exchange: Exchange, play: Play, is_stream: bool, wants_usage: bool
    ) -> None:
        self.arrived_s = exchange.request.arrived_s
        self._app = app
        self._exchange = exchange
        self._play = play
        self._is_stream = is_stream
        self._wants_usage = wants_usage
        self._next = 0
        self._left = False
        exchange.on_gone = self._leave

    def start(self, taken_up_s: float) -> None:
        """Takes the request up."""
        self._taken_up_s = taken_up_s
        if not self._is_stream:
            self._app.at(taken_up_s + self._play.scripted.send_times_s()[-1], self._answer_whole)
            return
        self._events = self._play.events()
        self._sent_s = array("d")
        self._exchange.send(self._exchange.begin("text/event-stream; charset=utf-8"))
        if opening := self._play.answer.opening(0):
            self._exchange.send(chunk(opening))
        self._step()

    def _step(self) -> None:
        if self._left:
            return
        while self._next < len(self._events):
            at_s, event = self._events[self._next]
            if self._taken_up_s + at_s > time.perf_counter():
                self._app.at(self._taken_up_s + at_s, self._step)
                return
            self._next += 1
            if self._next < len(self._events) or self._play.scripted.end != "done":
                self._sent_s.append(time.perf_counter())
                self._exchange.send(chunk(event))
            else:
                self._finish(chunk(event))
                return
        self._finish(b"")

    def _answer_whole(self) -> None:
        if self._left or self._ended_early():
            return
        body = json.dumps(self._play.whole(self._waited_s)).encode()
        self._exchange.answer(200, body)
        self._leave()

    def _finish(self, last: bytes) -> None:
        if not self._ended_early():
            end = self._play.end(self._waited_s, wants_usage=self._wants_usage)
            content = last + chunk(end) + LAST_CHUNK
            # Not before the end was made: what is stamped is the send.
            self._sent_s.append(time.perf_counter())
            self._exchange.end(content)
            self._remember()
            self._leave()

    def _remember(self) -> None:
        request_id = self._exchange.request.headers.get("x-request-id", "")
        # An answer without a token ends with an event of its own, which no token was due with.
        due_s = tuple(self._taken_up_s + at_s for at_s, _ in self._events)
        self._app.remember(Sent(request_id, self.arrived_s, due_s, tuple(self._sent_s[: len(due_s)])))

    def _ended_early(self) -> bool:
        end = self._play.scripted.end
        if end == "crash":
            print("the script ends this process", file=sys.stderr, flush=True)
            os._exit(_CRASH_CODE)
        if end == "cut":
            self._exchange.cut()
        return end == "cut"

    @property
    def _waited_s(self) -> float:
        return self._taken_up_s - self.arrived_s

    def _leave(self) -> None:
        if not self._left:
            self._left = True
            self._app.left(self)


def main() -> None:
    """Serves the script named in the first argument until SIGTERM."""
    import uvloop

    arguments = json.loads(sys.argv[1])
    with suppress(asyncio.CancelledError):
        uvloop.run(_serve(arguments))


async def _serve(arguments: Mapping[str, Any]) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    app = ScriptedApp(read_script(Path(arguments["script"])), arguments["model"])
    with _listen(arguments) as sock:
        await serve(sock, app.handle)


def _listen(arguments: Mapping[str, Any]) -> socket.socket:
    if "socket" in arguments:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(arguments["socket"])
        return sock
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", int(arguments["port"])))
    return sock


if __name__ == "__main__":
    main()
