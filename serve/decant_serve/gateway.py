"""The HTTP surface: routes, model pages, health, and each completion's way to the engine and back."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from decant_serve.admission import Admission
from decant_serve.calls import PATHS, Call, read_call, with_usage_chunk
from decant_serve.calls import Route as RouteName
from decant_serve.disconnects import ClientGone, while_connected
from decant_serve.engines.protocol import Engine
from decant_serve.exchange import Exchange, Reply, request_id_of
from decant_serve.openai_errors import ApiFault, from_engine, timed_out, unavailable, unknown_model
from decant_serve.passage import Passage
from decant_serve.supervisor import Supervisor
from decant_serve.timing_log import TimingLog

_log = logging.getLogger(__name__)

_BODY_LIMIT_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Gateway:
    """One served model: its page, its engine, who may go to it, and the log of what happened."""

    model: str
    page: Mapping[str, Any]
    engine: Engine
    supervisor: Supervisor
    admission: Admission
    timings: TimingLog
    request_limit_s: float

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/ready", self._ready),
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model),
                Route("/v1/requests/{request_id:path}/timing", self._timing),
                Route(PATHS["chat"], Completions(self, "chat"), methods=["POST"]),
                Route(PATHS["completions"], Completions(self, "completions"), methods=["POST"]),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _server_error},
        )

    async def _health(self, _: Request) -> Response:
        engine = {
            "name": self.engine.describe().name,
            "state": self.supervisor.state,
            "restarts": self.supervisor.restarts,
        }
        requests = {"running": self.admission.running, "waiting": self.admission.waiting}
        return JSONResponse({"status": "ok", "engine": engine, "requests": requests})

    async def _ready(self, _: Request) -> Response:
        state = self.supervisor.state
        return JSONResponse({"ready": state == "ready", "state": state}, 200 if state == "ready" else 503)

    async def _models(self, _: Request) -> Response:
        listed = {name: value for name, value in self.page.items() if name != "decant"}
        return JSONResponse({"object": "list", "data": [listed]})

    async def _model(self, request: Request) -> Response:
        name: str = request.path_params["model"]
        return JSONResponse(self.page) if name == self.model else unknown_model(name, self.model).response()

    async def _timing(self, request: Request) -> Response:
        record = self.timings.get(request.path_params["request_id"])
        if record is None:
            message = "no such request, or it is too long ago; --timing-log keeps them all"
            return ApiFault(404, message, type="not_found_error", code="request_not_found").response()
        return JSONResponse(record)


class Completions:
    """One completion route as an ASGI application: it owns the request from its body to its record."""

    def __init__(self, gateway: Gateway, route: RouteName) -> None:
        self._gateway = gateway
        self._route: RouteName = route
        description = gateway.engine.describe()
        self._engine_name = description.name
        self._features = description.features

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request and records its timing, whatever happens to it."""
        exchange = Exchange(request_id_of(scope), self._route)
        reply = Reply(send, exchange)
        request = Request(scope, receive)
        try:
            call = await self._read(request)
            exchange.streamed = call.request.stream
            await while_connected(request, self._forward(call, exchange, reply))
            await reply.finish()
        except (ClientGone, ClientDisconnect):
            exchange.leave()
        except ApiFault as fault:
            await reply.fail(fault)
        except BaseException:
            exchange.fail("gateway_error", 500)
            raise
        finally:
            self._gateway.timings.add(exchange.record(self._gateway.model))

    async def _read(self, request: Request) -> Call:
        raw = bytearray()
        async for part in request.stream():
            raw += part
            if len(raw) > _BODY_LIMIT_BYTES:
                message = f"the body is larger than {_BODY_LIMIT_BYTES} bytes"
                raise ApiFault(413, message, code="request_too_large")
        return read_call(
            self._route,
            bytes(raw),
            model=self._gateway.model,
            engine=self._engine_name,
            features=self._features,
        )

    async def _forward(self, call: Call, exchange: Exchange, reply: Reply) -> None:
        async with self._gateway.admission.slot():
            exchange.admitted_s = time.perf_counter()
            if self._gateway.supervisor.state != "ready":
                raise unavailable(f"the {self._engine_name} engine is being restarted")
            limit_s = self._gateway.request_limit_s
            try:
                async with asyncio.timeout(limit_s):
                    await self._relay(call, exchange, reply)
            except TimeoutError:
                raise timed_out(limit_s) from None
            except httpx.TransportError as error:
                _log.warning("request=%s event=engine-lost detail=%r", exchange.request_id, error)
                raise unavailable(f"the {self._engine_name} engine went away while it answered") from None

    async def _relay(self, call: Call, exchange: Exchange, reply: Reply) -> None:
        headers = {"content-type": "application/json", "x-request-id": exchange.request_id}
        content = self._content(call)
        client = self._gateway.supervisor.client
        async with client.stream("POST", PATHS[self._route], content=content, headers=headers) as upstream:
            if upstream.status_code != 200:
                raise from_engine(upstream.status_code, await upstream.aread(), upstream.headers)
            if call.request.stream:
                await _pass_stream(upstream, call, exchange, reply)
            else:
                await _pass_whole(upstream, exchange, reply)

    def _content(self, call: Call) -> bytes:
        body = self._gateway.engine.prepare(call.body)
        if call.request.stream and self._features.usage_chunk and not call.request.include_usage:
            body = with_usage_chunk(body)
        return call.raw if body is call.body else json.dumps(body).encode()


async def _pass_stream(upstream: httpx.Response, call: Call, exchange: Exchange, reply: Reply) -> None:
    passage = exchange.passage = Passage(wants_usage=call.request.include_usage)
    async for received in upstream.aiter_bytes():
        at_s = time.perf_counter()
        exchange.received(at_s)
        passed = passage.take(received, at_s)
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
    exchange.passage.read_whole(bytes(body))
    reply.set_whole(200, bytes(body))


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return ApiFault(error.status_code, error.detail, code=code, headers=error.headers).response()


async def _server_error(_: Request, error: Exception) -> Response:
    _log.error("event=gateway-error", exc_info=error)
    return ApiFault(
        500, "the gateway failed; its log says why", type="server_error", code="internal_error"
    ).response()
