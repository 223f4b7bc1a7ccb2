"""Each completion's way to its engine and back."""

import asyncio
import json
import logging
import time
from typing import Literal

import httpx
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from decant_serve.calls import PATHS, Call, parse_body, read_call, with_usage_chunk
from decant_serve.deadlines import asked_limit_s, within
from decant_serve.disconnects import ClientGone, while_connected
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
)
from decant_serve.passage import Passage
from decant_serve.responses_call import read_responses

_log = logging.getLogger(__name__)

GatewayRoute = Literal["chat", "completions", "responses"]
TIMING_HEADER = "X-Decant-Timing"

_BODY_LIMIT_S = 60.0
# A client that reads nothing must not keep its own error waiting for ever.
_FAREWELL_LIMIT_S = 5.0


class Completions:
    """One completion route as an ASGI application: it owns the request from its body to its record."""

    def __init__(self, gateway: Gateway, route: GatewayRoute) -> None:
        self._gateway = gateway
        self._route: GatewayRoute = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request and records its timing, whatever happens to it."""
        exchange = Exchange(scope["state"]["request_id"], self._route, scope["state"]["key"])
        reply = Reply(send, exchange)
        try:
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
            self._close(exchange)

    def _close(self, exchange: Exchange) -> None:
        record = exchange.record()
        self._gateway.timings.add(record)
        self._gateway.metrics.observe(record)
        if exchange.key is not None:
            exchange.key.limit.spend_tokens(exchange.tokens_used())

    async def _answer(self, request: Request, exchange: Exchange, reply: Reply) -> None:
        limit_s = asked_limit_s(request.headers)
        async with within(limit_s, lambda: deadline_passed(limit_s or 0.0)):
            if exchange.key is not None:
                exchange.key.limit.enter()
            async with within(_BODY_LIMIT_S, too_slow):
                raw = await self._body(request)
            served, call = self._read(raw, exchange)
            reply.voice = call.voice
            exchange.streamed = call.request.stream
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


def _passage(call: Call, exchange: Exchange, headers: Headers) -> Passage:
    asked = headers.get(TIMING_HEADER, "0")
    if asked not in ("0", "1"):
        raise refusal(f"{TIMING_HEADER}: must be 0 or 1", param=TIMING_HEADER, code="invalid_value")
    timing = (lambda: exchange.record().to_dict()) if asked == "1" else None
    return Passage(wants_usage=call.request.include_usage, timing=timing)


async def _say_goodbye(fault: ApiFault, exchange: Exchange, reply: Reply) -> None:
    try:
        async with asyncio.timeout(_FAREWELL_LIMIT_S):
            await reply.fail(fault)
    except TimeoutError:
        _log.warning("request=%s event=client-reads-nothing", exchange.request_id)


async def _relay(served: ServedModel, call: Call, exchange: Exchange, reply: Reply) -> None:
    headers = {"content-type": "application/json", "x-request-id": exchange.request_id}
    content = _content(served, call)
    client = served.supervisor.client
    async with client.stream("POST", PATHS[call.route], content=content, headers=headers) as upstream:
        if upstream.status_code != 200:
            raise from_engine(upstream.status_code, await upstream.aread(), upstream.headers)
        if call.request.stream:
            await _pass_stream(upstream, exchange, reply)
        else:
            await _pass_whole(upstream, exchange, reply)


def _content(served: ServedModel, call: Call) -> bytes:
    body = served.engine.prepare(call.body)
    usage_chunk = served.supervisor.features.usage_chunk
    if call.request.stream and usage_chunk and not call.request.include_usage:
        body = with_usage_chunk(body)
    return call.raw if body is call.body and call.raw is not None else json.dumps(body).encode()


async def _pass_stream(upstream: httpx.Response, exchange: Exchange, reply: Reply) -> None:
    passage = exchange.passage
    async for received in upstream.aiter_bytes():
        at_s = time.perf_counter()
        exchange.received(at_s)
        passed = reply.voice.stream(passage.take(received, at_s))
        if passed:
            await reply.write(passed)
    if passage.has_error:
        exchange.fail("engine_error", 200)
    elif not passage.is_done:
        raise ApiFault(502, "the engine ended its answer early", type="server_error", code="stream_broken")


async def _pass_whole(upstream: httpx.Response, exchange: Exchange, reply: Reply) -> None:
    body = bytearray()
    async for received in upstream.aiter_bytes():
        exchange.received(time.perf_counter())
        body += received
    reply.set_whole(200, reply.voice.whole(exchange.passage.take_whole(bytes(body))))
