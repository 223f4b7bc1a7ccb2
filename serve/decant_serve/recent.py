"""GET /v1/requests: what is in flight and what has ended lately, to whoever sent it."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from decant_serve.openai_errors import invalid_value
from decant_serve.timing_log import TimingLog

PATH = "/v1/requests"
MOST = 200

_DEFAULT = 50


class RecentRequests:
    """The route: newest first, each as its timing record without the times of its chunks."""

    def __init__(self, timings: TimingLog) -> None:
        self._timings = timings

    async def answer(self, request: Request) -> Response:
        """ApiFault 400 as an answer for a limit that is none."""
        asked = request.query_params.get("limit", str(_DEFAULT))
        limit = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 0
        if not 1 <= limit <= MOST:
            return invalid_value("limit", f"must be a whole number from 1 to {MOST}").response()
        key = request.scope["state"]["key"]
        rows = list(islice(self._rows(key.name if key else None), limit))
        return JSONResponse({"object": "list", "data": rows})

    def _rows(self, key: str | None) -> Iterator[dict[str, Any]]:
        states = (("running", self._timings.in_flight()), ("ended", self._timings.ended()))
        for state, records in states:
            for record in records:
                if record.key == key:
                    yield {**record.summary(), "state": state}
