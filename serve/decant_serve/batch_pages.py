"""/v1/batches: created, looked at, listed and cancelled, each by the API key that it belongs to."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from decant_serve.batch_objects import Batch
from decant_serve.file_pages import PATH as FILES_PATH
from decant_serve.file_pages import FilePages, not_found, owner_of, page_of
from decant_serve.openai_errors import ApiFault, invalid_value, refusal, too_large

if TYPE_CHECKING:
    from decant_serve.batches import Batches

PATH = "/v1/batches"
_BODY_BYTES = 256 * 2**10
_PAGE_AT_MOST, _PAGE = 100, 20


class BatchPages:
    """The routes of batches."""

    def __init__(self, batches: "Batches") -> None:
        self._batches = batches

    def routes(self) -> list[Route]:
        """For the table of routes."""
        return [
            Route(PATH, self.create, methods=["POST"]),
            Route(PATH, self.listing, methods=["GET"]),
            Route(PATH + "/{batch_id}", self.retrieve, methods=["GET"]),
            Route(PATH + "/{batch_id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """Takes a batch whose input file the same key has uploaded."""
        body, owner = await _object(request), owner_of(request)
        file_id = body.get("input_file_id")
        if isinstance(file_id, str) and self._batches.files.get(file_id, owner) is None:
            raise invalid_value("input_file_id", f"there is no file {file_id}")
        batch = await self._batches.create(dict(body), owner)
        return JSONResponse(batch.to_wire())

    async def listing(self, request: Request) -> Response:
        """The key's batches, the newest first."""
        batches = [batch.to_wire() for batch in self._batches.listed(owner_of(request))]
        return page_of(batches, request, most=_PAGE_AT_MOST, default=_PAGE)

    async def retrieve(self, request: Request) -> Response:
        """One batch as it stands."""
        return JSONResponse(self._batch(request).to_wire())

    async def cancel(self, request: Request) -> Response:
        """Asks no more of a batch's requests."""
        batch = self._batch(request)
        if batch.has_ended:
            message = f"Cannot cancel a batch with status '{batch.status}'."
            raise refusal(message, code="batch_ended")
        cancelled = await self._batches.cancel(batch.id)
        return JSONResponse(cancelled.to_wire())

    def _batch(self, request: Request) -> Batch:
        batch_id: str = request.path_params["batch_id"]
        batch = self._batches.get(batch_id, owner_of(request))
        if batch is None:
            raise not_found(f"No such batch: {batch_id}")
        return batch


def batch_routes(batches: "Batches | None", *, file_limit_bytes: int) -> list[Route]:
    """The routes of both APIs; a gateway without them says how to get them."""
    if batches is None:
        paths = (FILES_PATH, FILES_PATH + "/{rest:path}", PATH, PATH + "/{rest:path}")
        return [Route(path, _absent, methods=["GET", "POST", "DELETE"]) for path in paths]
    files = FilePages(batches.files, limit_bytes=file_limit_bytes)
    return [*files.routes(), *BatchPages(batches).routes()]


async def _absent(_: Request) -> Response:
    message = "this server keeps no files and batches; start it with `decant serve --batches FOLDER`"
    raise ApiFault(404, message, type="not_found_error", code="batches_off")


async def _object(request: Request) -> Mapping[str, Any]:
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > _BODY_BYTES:
            raise too_large(_BODY_BYTES)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise refusal(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise refusal("the body must be a JSON object", code="invalid_json")
    return cast(Mapping[str, Any], body)
