"""Each completion's way to its engine and back."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal

import httpx
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from decant_serve.calls import Call, parse_body, read_call, with_usage_chunk
from decant_serve.choices import single_bodies, stream_choices, whole_choices
from decant_serve.deadlines import asked_limit_s, within
from decant_serve.disconnects import ClientGone, while_connected
from decant_serve.embeddings import read_embeddings
from decant_serve.exchange import Exchange, Reply
from decant_serve.gateway import Gateway, ServedModel
from decant_serve.lookup_reply import write_found
from decant_serve.openai_errors import (
    ApiFault,
    deadline_passed,
    from_engine,
    refusal,
    timed_out,
    too_large,
    too_slow,
    unavailable,
    unknown_model,
    wrong_type,
)
from decant_serve.passage import Passage
from decant_serve.responses_call import read_responses

_log = logging.getLogger(__name__)

GatewayRoute = Literal["chat", "completions", "embeddings", "responses"]
TIMING_HEADER = "X-Decant-Timing"

_BODY_LIMIT_S = 60.0
_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
# A client that reads nothing must not keep its own error waiting for ever.
_FAREWELL_LIMIT_S = 5.0


class Completions:
    """One completion route as an ASGI application: it owns the request from its body to its record."""

    def __init__(self, gateway: Gateway, route: GatewayRoute) -> None:
        self._gateway = gateway
        self._route: GatewayRoute = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request and records its timing, whatever happens to it."""
        exchange = Exchange(
            scope["state"]["request_id"],
            self._route,
            scope["state"]["key"],
            trace=self._gateway.tracing.begin(Headers(scope=scope)),
        )
        reply = Reply(send, exchange)
        try:
            with self._gateway.timings.watching(exchange.record):
                async with self._gateway.drain.bounded():
                    await self._answer(Request(scope, receive), exchange, reply)
        except (ClientGone, ClientDisconnect):
            exchange.leave()
        except ApiFault as fault:
            await _say_goodbye(fault, exchange, reply)
        except BaseException:
            exchange.fail("gateway_error", 500)
            raise
        finally:
            await self._close(exchange)

    async def _close(self, exchange: Exchange) -> None:
        shards = exchange.served.shards if exchange.served else None
        try:
            if shards is not None:
                await shards.settle()
        finally:
            self._write_down(exchange)
            if shards is not None:
                shards.forget(exchange.request_id)

    def _write_down(self, exchange: Exchange) -> None:
        record = exchange.record()
        self._gateway.timings.add(record)
        self._gateway.metrics.observe(record)
        exchange.trace.end(record, exchange.asked)
        exchange.settle()

    async def _answer(self, request: Request, exchange: Exchange, reply: Reply) -> None:
        limit_s = asked_limit_s(request.headers)
        _require_json(request.headers)
        async with within(limit_s, lambda: deadline_passed(limit_s or 0.0)):
            if exchange.key is not None:
                exchange.key.limit.enter()
            async with within(_BODY_LIMIT_S, too_slow):
                raw = await self._body(request)
            served, call = self._read(raw, exchange)
            exchange.asked = call.body
            exchange.reserve(call.tokens)
            reply.voice = call.voice
            exchange.streamed, exchange.choices = call.streams, call.choices
            exchange.passage = _passage(call, exchange, request.headers)
            exchange.read_s = time.perf_counter()
            await while_connected(request, self._give(served, call, request.headers, exchange, reply))
            await reply.finish()

    async def _body(self, request: Request) -> bytes:
        limit_bytes = self._gateway.limits.body_limit_bytes
        told = request.headers.get("content-length", "")
        if told.isdigit() and int(told) > limit_bytes:
            raise too_large(limit_bytes)
        raw = bytearray()
        async for part in request.stream():
            raw += part
            if len(raw) > limit_bytes:
                raise too_large(limit_bytes)
        return bytes(raw)

    def _read(self, raw: bytes, exchange: Exchange) -> tuple[ServedModel, Call]:
        body = parse_body(raw)
        served = self._gateway.models.get(body["model"])
        if served is None:
            raise unknown_model(body["model"], self._gateway.models)
        exchange.served = served
        engine, features = served.engine_name, served.supervisor.features
        if self._route == "responses":
            return served, read_responses(body, engine=engine, features=features)
        if self._route == "embeddings":
            return served, read_embeddings(raw, body, engine=engine, features=features)
        return served, read_call(self._route, raw, body, engine=engine, features=features)

    async def _give(
        self, served: ServedModel, call: Call, headers: Headers, exchange: Exchange, reply: Reply
    ) -> None:
        if served.lookup is not None:
            found = await served.lookup.find(call, headers)
            exchange.source = "model" if found is None else "lookup"
            if found is not None:
                await write_found(found, call, exchange, reply)
                return
        await self._forward(served, call, exchange, reply)

    async def _forward(self, served: ServedModel, call: Call, exchange: Exchange, reply: Reply) -> None:
        limit_s = self._gateway.limits.request_limit_s
        async with served.admission.slot():
            exchange.admitted_s = time.perf_counter()
            if served.supervisor.state != "ready":
                raise unavailable(f"the {served.engine_name} engine is being restarted")
            try:
                async with within(limit_s, lambda: timed_out(limit_s)):
                    await _relay(served, call, exchange, reply)
            except httpx.TransportError as error:
                _log.warning("request=%s event=engine-lost detail=%r", exchange.request_id, error)
                raise unavailable(f"the {served.engine_name} engine went away while it answered") from None


def _require_json(headers: Headers) -> None:
    """ApiFault 415 for the types that a page of another site could make a browser send here unasked."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    # A body without a type needs no leave of ours either; browsers say where such a request comes from.
    from_elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    if kind in _FORM_TYPES or (from_elsewhere and not kind):
        raise wrong_type(kind or "nothing in particular")


def _passage(call: Call, exchange: Exchange, headers: Headers) -> Passage:
    asked = headers.get(TIMING_HEADER, "0")
    if asked not in ("0", "1"):
        raise refusal(f"{TIMING_HEADER}: must be 0 or 1", param=TIMING_HEADER, code="invalid_value")
    timing = (lambda: exchange.record().to_dict()) if asked == "1" else None
    return Passage(wants_usage=call.includes_usage, timing=timing)


async def _say_goodbye(fault: ApiFault, exchange: Exchange, reply: Reply) -> None:
    try:
        async with asyncio.timeout(_FAREWELL_LIMIT_S):
            await reply.fail(fault)
    except TimeoutError:
        _log.warning("request=%s event=client-reads-nothing", exchange.request_id)


async def _relay(served: ServedModel, call: Call, exchange: Exchange, reply: Reply) -> None:
    if call.choices > 1 and served.supervisor.features.splits_choices:
        await _relay_choices(served, call, exchange, reply)
        return
    async with _opened(served, call, exchange, _content(served, call)) as upstream:
        if call.streams:
            async for received in upstream.aiter_bytes():
                await _pass(received, exchange, reply)
            _check_end(exchange)
        else:
            await _pass_whole(upstream, exchange, reply)


async def _relay_choices(served: ServedModel, call: Call, exchange: Exchange, reply: Reply) -> None:
    def opened(body: Mapping[str, Any]) -> AbstractAsyncContextManager[httpx.Response]:
        return _opened(served, call, exchange, json.dumps(body).encode())

    bodies = single_bodies(served.engine.prepare(call.body), call.choices)
    if call.streams:
        await stream_choices(bodies, opened, lambda event: _pass(event, exchange, reply))
        _check_end(exchange)
        return
    body = await whole_choices(bodies, opened, lambda: exchange.received(time.perf_counter()))
    reply.set_whole(200, reply.voice.whole(exchange.passage.take_whole(body)))


@asynccontextmanager
async def _opened(
    served: ServedModel, call: Call, exchange: Exchange, content: bytes
) -> AsyncGenerator[httpx.Response]:
    headers = {
        "content-type": "application/json",
        "x-request-id": exchange.request_id,
        **exchange.trace.headers(),
    }
    client = served.supervisor.client
    async with client.stream("POST", call.path, content=content, headers=headers) as upstream:
        if upstream.status_code != 200:
            raise from_engine(upstream.status_code, await upstream.aread(), upstream.headers)
        yield upstream


def _content(served: ServedModel, call: Call) -> bytes:
    body = served.engine.prepare(call.body)
    usage_chunk = served.supervisor.features.usage_chunk
    if call.streams and usage_chunk and not call.includes_usage:
        body = with_usage_chunk(body)
    return call.raw if body is call.body and call.raw is not None else json.dumps(body).encode()


async def _pass(received: bytes, exchange: Exchange, reply: Reply) -> None:
    at_s = time.perf_counter()
    exchange.received(at_s)
    passed = reply.voice.stream(exchange.passage.take(received, at_s))
    if passed:
        await reply.write(passed)


def _check_end(exchange: Exchange) -> None:
    """ApiFault where a stream has neither its end nor an error in it."""
    if exchange.passage.has_error:
        exchange.fail("engine_error", 200)
    elif not exchange.passage.is_done:
        raise ApiFault(502, "the engine ended its answer early", type="server_error", code="stream_broken")


async def _pass_whole(upstream: httpx.Response, exchange: Exchange, reply: Reply) -> None:
    body = bytearray()
    async for received in upstream.aiter_bytes():
        exchange.received(time.perf_counter())
        body += received
    reply.set_whole(200, reply.voice.whole(exchange.passage.take_whole(bytes(body))))
