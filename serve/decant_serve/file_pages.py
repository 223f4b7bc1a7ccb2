"""/v1/files: files come up, are listed, read back and deleted, each by the API key that brought it."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from decant_serve.openai_errors import ApiFault, invalid_value, refusal, too_large
from decant_serve.stored_files import FileBox, NewFile, StoredFile

PATH = "/v1/files"
_PURPOSE = "batch"
_FIELDS_AT_MOST = 8
_PAGE_AT_MOST = 10_000
_FORM_BYTES = 64 * 2**10  # what a form may hold beside the file


class FilePages:
    """The routes of files."""

    def __init__(self, files: FileBox, *, limit_bytes: int) -> None:
        self._files = files
        self._limit_bytes = limit_bytes

    def routes(self) -> list[Route]:
        """For the table of routes."""
        return [
            Route(PATH, self.upload, methods=["POST"]),
            Route(PATH, self.listing, methods=["GET"]),
            Route(PATH + "/{file_id}", self.retrieve, methods=["GET"]),
            Route(PATH + "/{file_id}", self.delete, methods=["DELETE"]),
            Route(PATH + "/{file_id}/content", self.content, methods=["GET"]),
        ]

    async def upload(self, request: Request) -> Response:
        """Takes a multipart form with `file` and `purpose`."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise refusal("send the file as multipart/form-data, with the fields file and purpose")
        bounded = Request(request.scope, self._bounded(request))
        async with bounded.form(max_files=1, max_fields=_FIELDS_AT_MOST) as form:
            upload = form.get("file")
            if not isinstance(upload, UploadFile):
                raise refusal("file: a file is required", param="file", code="missing_required_parameter")
            if form.get("purpose") != _PURPOSE:
                raise invalid_value("purpose", f"must be {_PURPOSE}: files serve no other purpose here")
            about = NewFile(
                owner=owner_of(request),
                filename=upload.filename or "upload.jsonl",
                purpose=_PURPOSE,
                expires_in_s=_expires_in_s(form),
            )
            stored = await asyncio.to_thread(self._files.keep, upload.file, about)
        return JSONResponse(stored.to_wire())

    async def listing(self, request: Request) -> Response:
        """The key's files, the newest first unless `order` is asc."""
        query = request.query_params
        files = self._files.listed(owner_of(request))
        if "purpose" in query:
            files = [file for file in files if file.purpose == query["purpose"]]
        if query.get("order") == "asc":
            files.reverse()
        return page_of([file.to_wire() for file in files], request, most=_PAGE_AT_MOST, default=_PAGE_AT_MOST)

    async def retrieve(self, request: Request) -> Response:
        """One file's object."""
        return JSONResponse(self._file(request).to_wire())

    async def content(self, request: Request) -> Response:
        """One file's bytes."""
        file = self._file(request)
        return FileResponse(self._files.path(file.id), media_type="application/octet-stream")

    async def delete(self, request: Request) -> Response:
        """Removes one file; a batch that is being run has read it by then."""
        file = self._file(request)
        await asyncio.to_thread(self._files.delete, file.id)
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})

    def _file(self, request: Request) -> StoredFile:
        file_id: str = request.path_params["file_id"]
        file = self._files.get(file_id, owner_of(request))
        if file is None:
            raise not_found(f"No such file: {file_id}")
        return file

    def _bounded(self, request: Request) -> Callable[[], Any]:
        """The request's body, refused once it is over the limit, whatever its headers say."""
        left = self._limit_bytes + _FORM_BYTES

        async def receive() -> Message:
            nonlocal left
            message = await request.receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise too_large(self._limit_bytes)
            return message

        return receive


def owner_of(request: Request) -> str | None:
    """The name of the API key that a request came with."""
    key = request.scope["state"]["key"]
    return key.name if key else None


def not_found(message: str) -> ApiFault:
    """A 404 for what is not there, or not for this key."""
    return ApiFault(404, message, type="not_found_error", code="not_found")


def page_of(objects: list[dict[str, Any]], request: Request, *, most: int, default: int) -> Response:
    """A part of a list, behind the id `after`, of at most `limit` objects."""
    query = request.query_params
    told = query.get("limit", str(default))
    if not told.isdecimal() or not 1 <= int(told) <= most:
        raise invalid_value("limit", f"must be a number from 1 to {most}")
    start = 0
    if "after" in query:
        places = [place for place, one in enumerate(objects) if one["id"] == query["after"]]
        if not places:
            raise invalid_value("after", f"there is no {query['after']} in this list")
        start = places[0] + 1
    shown = objects[start : start + int(told)]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {}
    has_more = start + len(shown) < len(objects)
    empty: dict[str, Any] = {"first_id": None, "last_id": None}
    return JSONResponse({"object": "list", "data": shown, **empty, **ends, "has_more": has_more})


def _expires_in_s(form: FormData) -> int | None:
    told = form.get("expires_after[seconds]")
    if told is None:
        return None
    if not isinstance(told, str) or not told.isdecimal() or int(told) < 1:
        raise invalid_value("expires_after", "seconds must be a number above 0")
    return int(told)
