"""Reading a batch's input file: every line a request, or a reason why the batch cannot be run."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from decant.wire import canonical_json

MOST_REQUESTS = 50_000
_MOST_PROBLEMS = 100
_MOST_ID_CHARACTERS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """One request; `place` counts the file's requests from 0."""

    place: int
    custom_id: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a line is no request; lines count from 1."""

    line: int | None
    code: str
    message: str
    param: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """An entry of the batch's `errors`."""
        return {"line": self.line, "code": self.code, "message": self.message, "param": self.param}


def read_input(path: Path, *, endpoint: str, models: Collection[str]) -> Iterator[BatchRequest | Problem]:
    """The requests of a file, one at a time, and its problems up to the hundredth.

    A batch is refused whole: one that runs has a place for every line.
    """
    ids: set[str] = set()
    problems = 0
    with path.open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        for place, (number, line) in enumerate(lines):
            found = _read_line(place, number, line, endpoint=endpoint, models=models)
            if isinstance(found, BatchRequest) and found.custom_id in ids:
                about = f"the custom_id {found.custom_id!r} is given twice"
                found = Problem(line=number, code="duplicate_custom_id", message=about, param="custom_id")
            if isinstance(found, BatchRequest) and place >= MOST_REQUESTS:
                about = f"a batch holds at most {MOST_REQUESTS} requests"
                found = Problem(line=number, code="too_many_tasks", message=about)
            yield found
            if isinstance(found, BatchRequest):
                ids.add(found.custom_id)
                continue
            problems += 1
            if problems == _MOST_PROBLEMS:
                return
    if not ids and not problems:
        yield Problem(line=None, code="empty_file", message="the file holds no request")


def _read_line(
    place: int, number: int, line: bytes, *, endpoint: str, models: Collection[str]
) -> BatchRequest | Problem:
    try:
        fields = _parsed(line)
        return BatchRequest(
            place=place, custom_id=_custom_id(fields), body=_body(fields, endpoint=endpoint, models=models)
        )
    except _Refused as why:
        return Problem(line=number, code=why.code, message=why.message, param=why.param)


class _Refused(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message if param is None else f"{param}: {message}"
        self.param = param


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        parsed: Any = json.loads(line)
        # Numbers that JSON does not have, such as NaN, are found here.
        canonical_json(parsed)
    except (ValueError, RecursionError) as error:
        raise _Refused("invalid_json_line", f"this line is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise _Refused("invalid_json_line", "this line is no JSON object")
    return cast(dict[str, Any], parsed)


def _custom_id(fields: dict[str, Any]) -> str:
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MOST_ID_CHARACTERS:
        fault = f"must be a text of 1 to {_MOST_ID_CHARACTERS} characters"
        raise _Refused("missing_required_parameter", fault, "custom_id")
    if not all(character.isprintable() for character in custom_id):
        raise _Refused("invalid_value", "must be of printable characters", "custom_id")
    return custom_id


def _body(fields: dict[str, Any], *, endpoint: str, models: Collection[str]) -> dict[str, Any]:
    body = fields.get("body")
    if fields.get("method") != "POST":
        raise _Refused("invalid_method", "must be POST", "method")
    if fields.get("url") != endpoint:
        raise _Refused("mismatched_endpoint", f"must be the batch's endpoint, {endpoint}", "url")
    if not isinstance(body, dict):
        raise _Refused("missing_required_parameter", "must be a JSON object", "body")
    asked = cast(dict[str, Any], body)
    if asked.get("model") not in models:
        fault = f"{asked.get('model')!r} is not served here; there is {', '.join(models)}"
        raise _Refused("model_not_found", fault, "body.model")
    if asked.get("stream"):
        raise _Refused("invalid_value", "answers of a batch come whole", "body.stream")
    return asked
