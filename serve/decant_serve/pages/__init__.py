"""The page at `/`: plain files, served as they are, that talk to the gateway's public routes."""

from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent
_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere and nothing inline: a model's words can become text on this page, never code.
_HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def page_routes() -> list[Route]:
    """The page and its files; they are read once, here."""
    files = [path for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES]
    routes = [Route(path_of(path.name), _File(path).answer) for path in files]
    return [Route("/", _File(_FOLDER / "index.html").answer), *routes]


def path_of(name: str) -> str:
    """Where one of the page's files is served."""
    return f"/page/{name}"


class _File:
    """One file as an answer."""

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        self._headers = {**_HEADERS, "content-type": _TYPES[path.suffix]}

    async def answer(self, _: Request) -> Response:
        return Response(self._content, headers=self._headers)
