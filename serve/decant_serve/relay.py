"""One call to its engine, and the engine's answer on its way to the client."""

import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from decant_serve.calls import Call, with_usage_chunk
from decant_serve.choices import single_bodies, stream_choices, whole_choices
from decant_serve.engine_client import EngineAnswer
from decant_serve.engine_connection import Piece
from decant_serve.exchange import Exchange, Reply
from decant_serve.gateway import ServedModel
from decant_serve.openai_errors import ApiFault, from_engine


async def relay(served: ServedModel, call: Call, exchange: Exchange, reply: Reply) -> None:
    """Passes the answer on; ApiFault for an engine's refusal or a stream without its end, EngineLost."""
    if call.choices > 1 and served.supervisor.features.splits_choices:
        await _relay_choices(served, call, exchange, reply)
        return
    async with _opened(served, call, exchange, _content(served, call)) as answer:
        if not call.streams:
            body = await answer.whole(exchange.received)
            reply.set_whole(200, reply.voice.whole(exchange.passage.take_whole(body)))
            return
        while pieces := await answer.pieces():
            # What completes the answer goes out with its end, in one write.
            await _pass(pieces, exchange, reply, is_last=answer.is_complete)
        _check_end(exchange)


async def _relay_choices(served: ServedModel, call: Call, exchange: Exchange, reply: Reply) -> None:
    def opened(body: Mapping[str, Any]) -> AbstractAsyncContextManager[EngineAnswer]:
        return _opened(served, call, exchange, json.dumps(body).encode())

    async def emit(event: bytes) -> None:
        await _pass([(time.perf_counter(), event)], exchange, reply, is_last=False)

    bodies = single_bodies(served.engine.prepare(call.body), call.choices)
    if call.streams:
        await stream_choices(bodies, opened, emit)
        _check_end(exchange)
        return
    body = await whole_choices(bodies, opened, lambda: exchange.received(time.perf_counter()))
    reply.set_whole(200, reply.voice.whole(exchange.passage.take_whole(body)))


@asynccontextmanager
async def _opened(
    served: ServedModel, call: Call, exchange: Exchange, content: bytes
) -> AsyncGenerator[EngineAnswer]:
    headers = {"x-request-id": exchange.request_id, **exchange.trace.headers()}
    answer = await served.supervisor.requests.ask(call.path, content, headers)
    try:
        if answer.status != 200:
            raise from_engine(answer.status, await answer.whole(), answer.headers)
        yield answer
    finally:
        answer.close()


def _content(served: ServedModel, call: Call) -> bytes:
    body = served.engine.prepare(call.body)
    usage_chunk = served.supervisor.features.usage_chunk
    if call.streams and usage_chunk and not call.includes_usage:
        body = with_usage_chunk(body)
    return call.raw if body is call.body and call.raw is not None else json.dumps(body).encode()


async def _pass(pieces: Sequence[Piece], exchange: Exchange, reply: Reply, *, is_last: bool) -> None:
    for at_s, part in pieces:
        exchange.received(at_s)
        passed = reply.voice.stream(exchange.passage.take(part, at_s))
        if passed:
            reply.hold(passed)
    if not is_last:
        await reply.flush()


def _check_end(exchange: Exchange) -> None:
    """ApiFault where a stream has neither its end nor an error in it."""
    if exchange.passage.has_error:
        exchange.fail("engine_error", 200)
    elif not exchange.passage.is_done:
        raise ApiFault(502, "the engine ended its answer early", type="server_error", code="stream_broken")
