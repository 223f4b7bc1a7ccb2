"""Each completion's way to its engine and back."""

import asyncio
import logging
import time
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from decant_serve.calls import Call, parse_body, read_call
from decant_serve.deadlines import asked_limit_s, within
from decant_serve.disconnects import ClientGone, while_connected
from decant_serve.embeddings import read_embeddings
from decant_serve.engine_connection import EngineLost
from decant_serve.exchange import Exchange, Reply
from decant_serve.gateway import Gateway, ServedModel
from decant_serve.lookup_reply import write_found
from decant_serve.openai_errors import (
    ApiFault,
    deadline_passed,
    internal_error,
    refusal,
    timed_out,
    too_large,
    too_slow,
    unavailable,
    unknown_model,
    wrong_type,
)
from decant_serve.passage import Passage
from decant_serve.relay import relay
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
        headers = Headers(scope=scope)
        exchange = Exchange(
            scope["state"]["request_id"],
            self._route,
            scope["state"]["key"],
            trace=self._gateway.tracing.begin(headers),
        )
        reply = Reply(send, exchange)
        try:
            with self._gateway.timings.watching(exchange.record):
                async with self._gateway.drain.bounded():
                    await self._answer(headers, receive, exchange, reply)
        except ClientGone:
            exchange.leave()
        except ApiFault as fault:
            await _say_goodbye(fault, exchange, reply)
        except Exception as error:  # noqa: BLE001 - the boundary of a request: logged, and said to the client
            _log.exception("request=%s event=gateway-error", exchange.request_id, exc_info=error)
            await _say_goodbye(internal_error(), exchange, reply)
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

    async def _answer(self, headers: Headers, receive: Receive, exchange: Exchange, reply: Reply) -> None:
        limit_s = asked_limit_s(headers)
        _require_json(headers)
        async with within(limit_s, lambda: deadline_passed(limit_s or 0.0)):
            if exchange.key is not None:
                exchange.key.limit.enter()
            async with within(_BODY_LIMIT_S, too_slow):
                raw = await self._body(headers, receive)
            served, call = self._read(raw, exchange)
            exchange.asked = call.body
            exchange.reserve(call.tokens)
            reply.voice = call.voice
            exchange.streamed, exchange.choices = call.streams, call.choices
            exchange.passage = _passage(call, exchange, headers)
            exchange.read_s = time.perf_counter()
            await while_connected(receive, self._give(served, call, headers, exchange, reply))
            await reply.finish()

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        limit_bytes = self._gateway.limits.body_limit_bytes
        told = headers.get("content-length", "")
        if told.isdigit() and int(told) > limit_bytes:
            raise too_large(limit_bytes)
        raw, comes_more = bytearray(), True
        while comes_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            raw += message.get("body", b"")
            if len(raw) > limit_bytes:
                raise too_large(limit_bytes)
            comes_more = message.get("more_body", False)
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
                    await relay(served, call, exchange, reply)
            except EngineLost as error:
                _log.warning("request=%s event=engine-lost detail=%r", exchange.request_id, str(error))
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
