"""The HTTP surface: routes, model pages, health, metrics and timings."""

import asyncio
import logging
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from decant_serve.batch_pages import batch_routes
from decant_serve.calls import EMBEDDINGS_PATH, PATHS
from decant_serve.completions import Completions
from decant_serve.front import Front
from decant_serve.gateway import Gateway, ServedModel
from decant_serve.metrics import CONTENT_TYPE, Reading
from decant_serve.openai_errors import ApiFault, internal_error, unknown_model
from decant_serve.openapi import openapi_document
from decant_serve.pages import page_routes
from decant_serve.recent import PATH as RECENT_PATH
from decant_serve.recent import RecentRequests
from decant_serve.responses_call import PATH as RESPONSES_PATH

_log = logging.getLogger(__name__)


def gateway_app(gateway: Gateway) -> ASGIApp:
    """The ASGI application."""
    return Front(routed_app(gateway), access=gateway.access)


def routed_app(gateway: Gateway) -> ASGIApp:
    """The same behind the front: whoever calls it has set `request_id` and `key` in `scope["state"]`."""
    pages = Pages(gateway)
    routes = [
        # Tried in this order: what is asked most comes first.
        Route(PATHS["chat"], Completions(gateway, "chat"), methods=["POST"]),
        Route(PATHS["completions"], Completions(gateway, "completions"), methods=["POST"]),
        Route(EMBEDDINGS_PATH, Completions(gateway, "embeddings"), methods=["POST"]),
        Route(RESPONSES_PATH, Completions(gateway, "responses"), methods=["POST"]),
        Route("/health", pages.health),
        Route("/ready", pages.ready),
        Route("/metrics", pages.metrics),
        Route("/openapi.json", pages.openapi),
        Route("/v1/models", pages.models),
        Route("/v1/models/{model:path}", pages.model),
        Route(RECENT_PATH, RecentRequests(gateway.timings).answer),
        Route("/v1/requests/{request_id:path}/timing", pages.timing),
        *page_routes(),
        *batch_routes(gateway.batches, file_limit_bytes=gateway.limits.file_limit_bytes),
    ]
    handlers = {HTTPException: _http_error, ApiFault: _refused, Exception: _server_error}
    return Starlette(routes=routes, exception_handlers=handlers)


class Pages:
    """Every route that is no completion."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def health(self, _: Request) -> Response:
        """The gateway lives; what its engines do, and how much goes on."""
        served = self._gateway.models.values()
        requests = {
            "running": sum(model.admission.running for model in served),
            "waiting": sum(model.admission.waiting for model in served),
        }
        models = {model.name: _engine_state(model) for model in served}
        tasks = len(asyncio.all_tasks())
        return JSONResponse({"status": "ok", "models": models, "requests": requests, "tasks": tasks})

    async def ready(self, _: Request) -> Response:
        """200 when requests can come to every model."""
        states = [model.supervisor.state for model in self._gateway.models.values()]
        state = next((state for state in states if state != "ready"), "ready")
        if self._gateway.drain.is_draining:
            state = "draining"
        return JSONResponse({"ready": state == "ready", "state": state}, 200 if state == "ready" else 503)

    async def metrics(self, _: Request) -> Response:
        """Prometheus' text format."""
        return Response(self._gateway.metrics.render(self._readings()), media_type=CONTENT_TYPE)

    async def openapi(self, _: Request) -> Response:
        """What can be asked here, as an OpenAPI document."""
        return JSONResponse(openapi_document())

    async def models(self, _: Request) -> Response:
        """OpenAI's list."""
        pages = [model.page for model in self._gateway.models.values()]
        listed = [{name: value for name, value in page.items() if name != "decant"} for page in pages]
        return JSONResponse({"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        """One model's page."""
        name: str = request.path_params["model"]
        served = self._gateway.models.get(name)
        return JSONResponse(served.page) if served else unknown_model(name, self._gateway.models).response()

    async def timing(self, request: Request) -> Response:
        """One request's record, to whoever sent it."""
        record = self._gateway.timings.get(request.path_params["request_id"])
        key = request.scope["state"]["key"]
        if record is None or record.key != (key.name if key else None):
            message = "no such request, or it is too long ago; --timing-log keeps them all"
            return ApiFault(404, message, type="not_found_error", code="request_not_found").response()
        return JSONResponse(record.to_dict())

    def _readings(self) -> list[Reading]:
        served = list(self._gateway.models.values())
        labels = [{"model": model.name, "engine": model.engine_name} for model in served]
        values = {
            ("decant_requests_running", "Requests in the engine.", "gauge"): [
                model.admission.running for model in served
            ],
            ("decant_requests_waiting", "Requests in the gateway's queue.", "gauge"): [
                model.admission.waiting for model in served
            ],
            ("decant_engine_up", "Whether the engine takes requests.", "gauge"): [
                int(model.supervisor.state == "ready") for model in served
            ],
            ("decant_engine_restarts_total", "Times that the engine died and came back.", "counter"): [
                model.supervisor.restarts for model in served
            ],
        }
        lost = Reading(
            "decant_timing_records_lost_total",
            "Timing records that could not be written to their file.",
            "counter",
            [({}, self._gateway.timings.lost)],
        )
        readings = [
            Reading(*about, list(zip(labels, numbers, strict=True))) for about, numbers in values.items()
        ]
        refused = Reading(
            "decant_unauthorized_total",
            "Requests without a known API key.",
            "counter",
            [({}, self._gateway.access.refused)],
        )
        return [*readings, _busy(served), lost, refused, _lookups(served)]


def _busy(served: Sequence[ServedModel]) -> Reading:
    timed = [(model, model.shards) for model in served if model.shards]
    return Reading(
        "decant_engine_busy_seconds_total",
        "Time that engine steps took, on the rank that took longest.",
        "counter",
        [({"model": model.name, "engine": model.engine_name}, shards.busy_s) for model, shards in timed],
    )


def _lookups(served: Sequence[ServedModel]) -> Reading:
    counted = [
        ({"model": model.name, "result": result}, number)
        for model in served
        if model.lookup is not None
        for result, number in model.lookup.counts.items()
    ]
    return Reading("decant_lookups_total", "Requests that were looked up first.", "counter", counted)


def _engine_state(model: ServedModel) -> dict[str, object]:
    return {
        "engine": model.engine_name,
        "state": model.supervisor.state,
        "restarts": model.supervisor.restarts,
        "running": model.admission.running,
        "waiting": model.admission.waiting,
        **({"shards": model.shards.state()} if model.shards else {}),
    }


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return ApiFault(error.status_code, error.detail, code=code, headers=error.headers).response()


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiFault)
    return error.response()


async def _server_error(_: Request, error: Exception) -> Response:
    _log.error("event=gateway-error", exc_info=error)
    return internal_error().response()
