"""The review page's HTTP side: on loopback, behind a token in the path, closed to pages of other origins."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from decant.config import Config, validate
from decant.errors import ConfigError, DataError, DecantError, StoreError
from decant.reviews import Decision, Review, add_review, latest, read_reviews
from decant.store import RequestStore
from decant_distill.labels import Label
from decant_distill.review_index import Filter, Item, LabelIndex, state_of
from decant_distill.reviewed import after_review

_PAGE_FOLDER = Path(__file__).parent / "review_page"
_FILES = {"": "index.html", "review.js": "review.js", "review.css": "review.css"}
_BODY_LIMIT_BYTES = 1_000_000
_MOST_PER_PAGE = 200
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


_STATUSES: Mapping[type[DecantError], int] = {StoreError: 409, DataError: 422}


class DecisionBody(Config):
    """What the page sends; `version` is the number that this decision is to have."""

    version: int = Field(ge=1)
    decision: Decision
    reasoning: str | None = Field(default=None, max_length=200_000)
    answer: str | None = Field(default=None, max_length=200_000)
    note: str = Field(default="", max_length=2_000)


class Desk:
    """Labels and what was decided on them; decisions go into the store before they show."""

    def __init__(self, index: LabelIndex, requests: RequestStore, *, reviewer: str) -> None:
        self._index = index
        self._requests = requests
        self._reviewer = reviewer
        keys = (item.key for item in index.items.values() if item.key)
        self._versions = read_reviews(requests, keys)
        self._decisions = latest(self._versions)

    def summary(self) -> dict[str, Any]:
        """Counts of everything that can be filtered by."""
        facets = self._index.facets(self._decisions).to_fields()
        return {"file": str(self._index.path), "reviewer": self._reviewer, "facets": facets}

    def find(self, chosen: Filter, *, start: int, count: int) -> dict[str, Any]:
        """One page of what a filter shows."""
        found = self._index.find(chosen, self._decisions)
        return {"total": len(found), "items": [self._row(item) for item in found[start : start + count]]}

    def look(self, line: int) -> dict[str, Any]:
        """One label with its row's other samples, and everything that was decided on it."""
        label, item = self._index.label(line), self._index.items[line]
        review = self._decisions.get(item.key or "")
        shown = after_review(label, review)
        return {
            "label": label.to_fields(),
            "now": {"reasoning": shown.reasoning, "answer": shown.answer},
            "item": self._row(item),
            "samples": [self._row(other) for other in self._index.row_of(line)],
            "versions": [asdict(version) for version in self._versions.get(item.key or "", [])],
        }

    def decide(self, line: int, body: DecisionBody) -> dict[str, Any]:
        """Records a decision; DataError for one that makes no sense, StoreError when somebody was faster."""
        label = self._index.label(line)
        review = self._review(label, body)
        try:
            asked = label.prompt or []
            add_review(self._requests, review, row_id=label.id, sample=label.sample, asked=asked)
        finally:
            # Whoever was faster shows now.
            self._versions |= read_reviews(self._requests, [review.of])
            self._decisions.pop(review.of, None)
            self._decisions |= latest({review.of: self._versions[review.of]})
        return self.look(line)

    def _review(self, label: Label, body: DecisionBody) -> Review:
        if label.key is None:
            raise DataError("this row was never asked, so there is nothing to decide; mend the dataset")
        if body.decision == "accept" and label.status != "done":
            raise DataError("there is no answer to accept; edit it or reject it")
        answer = (body.answer or "").strip()
        if body.decision == "edit" and not answer:
            raise DataError("an edit needs an answer")
        is_edit = body.decision == "edit"
        return Review(
            of=label.key,
            version=body.version,
            decision=body.decision,
            by=self._reviewer,
            note=body.note.strip(),
            reasoning=((body.reasoning or "").strip() or None) if is_edit else None,
            answer=answer if is_edit else None,
            at=time.time(),
        )

    def _row(self, item: Item) -> dict[str, Any]:
        fields = asdict(item)
        del fields["start"], fields["row"]
        review = self._decisions.get(item.key or "")
        if review is not None and review.decision == "edit":
            fields["answer"] = review.answer
        return {**fields, "certainty": item.certainty, "state": state_of(item, self._decisions)}


def build_app(desk: Desk, *, token: str) -> Starlette:
    """The app; everything lives under `/TOKEN/`."""

    async def summary(_: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(desk.summary))

    async def find(request: Request) -> Response:
        query = dict(request.query_params)
        start, count = _whole(query.pop("start", "0")), _whole(query.pop("count", "100"))
        chosen = validate(Filter, {name: value for name, value in query.items() if value}, where="filter")
        page = await asyncio.to_thread(desk.find, chosen, start=start, count=min(count, _MOST_PER_PAGE))
        return JSONResponse(page)

    async def look(request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(desk.look, request.path_params["line"]))

    async def decide(request: Request) -> Response:
        body = await _body(request)
        return JSONResponse(await asyncio.to_thread(desk.decide, request.path_params["line"], body))

    routes = [
        Route("/api/summary", _answered(summary)),
        Route("/api/labels", _answered(find)),
        Route("/api/labels/{line:int}", _answered(look)),
        Route("/api/labels/{line:int}", _answered(decide), methods=["POST"]),
        *(Route(f"/{path}", _file(name)) for path, name in _FILES.items()),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, token=token)])


class Guard:
    """Lets in who knows the token and comes from this page; a foreign page's script is refused.

    The `Host` must be a loopback name, so that no other name that resolves to this machine gets in.
    """

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app = app
        self._prefix = f"/{token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or says 403 or 404."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        given = path[: len(self._prefix)]
        if not hmac.compare_digest(given.encode(), self._prefix.encode()):
            refusal = PlainTextResponse("no such page; use the address that decant review printed\n", 404)
        elif not _is_own(headers):
            refusal = PlainTextResponse("refused: this page answers only to itself\n", 403)
        elif path == self._prefix:
            # Relative addresses of the page need the closing slash.
            refusal = Response(status_code=307, headers={"location": f"{self._prefix}/"})
        else:
            scope = {**scope, "path": path.removeprefix(self._prefix), "raw_path": b""}
            await self._app(scope, receive, _with_headers(send))
            return
        await refusal(scope, receive, _with_headers(send))


def _is_own(headers: dict[str, str]) -> bool:
    host = headers.get("host", "")
    is_loopback = host.rpartition(":")[0] in ("127.0.0.1", "localhost")
    is_same = headers.get("origin", f"http://{host}") == f"http://{host}"
    return is_loopback and is_same and headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def _with_headers(send: Send) -> Send:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message = {**message, "headers": [*message["headers"], *own]}
        await send(message)

    return sending


_Endpoint = Callable[[Request], Awaitable[Response]]


def _answered(endpoint: _Endpoint) -> _Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except DecantError as error:
            return JSONResponse({"error": str(error)}, status_code=_STATUSES.get(type(error), 400))

    return answer


def _file(name: str) -> _Endpoint:
    async def send(_: Request) -> Response:
        return FileResponse(_PAGE_FOLDER / name)

    return send


async def _body(request: Request) -> DecisionBody:
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise ConfigError("a decision is sent as application/json")
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _BODY_LIMIT_BYTES:
            raise ConfigError(f"a decision has at most {_BODY_LIMIT_BYTES} bytes")
    try:
        return DecisionBody.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from None


def _whole(text: str) -> int:
    with suppress(ValueError):
        return max(0, int(text))
    raise ConfigError(f"start and count are whole numbers, not {text!r}")
