"""Traces of real traffic: when each request came and how long its prompt and answer were.

Formats are told by what they hold: Mooncake's JSONL, the CSV of BurstGPT and of Azure's LLM inference traces,
and the request log that `decant serve` or `decant bench run` wrote.
"""

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from decant.dataset import read_good_rows
from decant.errors import DataError

MOONCAKE_BLOCK_TOKENS = 512
"""A hash id stands for this many prompt tokens, by the format's own description."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace: seconds after the first one, tokens in and out, and its prompt's blocks.

    Equal block ids mean equal blocks of the prompt: a cache can serve them again.
    """

    offset_s: float
    prompt_tokens: int
    completion_tokens: int
    blocks: tuple[int, ...] = ()


_Reader = Callable[[Mapping[str, Any]], TraceRequest | None]


def read_trace(path: Path, *, limit: int | None = None, speed: float = 1.0) -> list[TraceRequest]:
    """The requests in order of arrival, the gaps divided by `speed`; DataError names a line that is wrong.

    Requests without an answer (BurstGPT's failures) are left out: they have no length to ask for.
    """
    lines = _csv_lines(path) if path.suffix == ".csv" else _json_lines(path)
    requests = [request for request in lines if request is not None]
    if not requests:
        raise DataError(f"{path}: holds no request that could be replayed")
    requests.sort(key=lambda request: request.offset_s)
    first_s = requests[0].offset_s
    return [replace(r, offset_s=(r.offset_s - first_s) / speed) for r in requests[:limit]]


def _json_lines(path: Path) -> Iterator[TraceRequest | None]:
    reader: _Reader | None = None
    for row in read_good_rows(path):
        if reader is None:
            reader = _json_reader(row.fields, f"{path}:{row.line}")
        yield _read(reader, row.fields, f"{path}:{row.line}")


def _csv_lines(path: Path) -> Iterator[TraceRequest | None]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            names = set(rows.fieldnames or ())
            reader = next((r for wanted, r in _CSV_READERS if wanted <= names), None)
            if reader is None:
                wanted = " or ".join(", ".join(sorted(columns)) for columns, _ in _CSV_READERS)
                raise DataError(f"{path}:1: not a trace we know; its columns must hold {wanted}")
            for row in rows:
                yield _read(reader, row, f"{path}:{rows.line_num}")
    except OSError as error:
        raise DataError(f"{path}: cannot read the trace ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8") from None


def _read(reader: _Reader, row: Mapping[str, Any], where: str) -> TraceRequest | None:
    try:
        request = reader(row)
    except KeyError as error:
        raise DataError(f"{where}: lacks the field {error}") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from None
    if request is not None and (request.prompt_tokens < 0 or request.completion_tokens < 0):
        raise DataError(f"{where}: a negative number of tokens")
    return request


def _json_reader(fields: Mapping[str, Any], where: str) -> _Reader:
    if "input_length" in fields:
        return _mooncake
    if "actual_s" in fields:
        return _request_log
    raise DataError(
        f"{where}: not a trace we know; it needs timestamp, input_length and output_length (Mooncake),"
        " or actual_s, prompt_tokens and completion_tokens (our request log)"
    )


def _mooncake(row: Mapping[str, Any]) -> TraceRequest:
    return TraceRequest(
        offset_s=float(row["timestamp"]) / 1000,
        prompt_tokens=int(row["input_length"]),
        completion_tokens=int(row["output_length"]),
        blocks=tuple(int(block) for block in row.get("hash_ids") or ()),
    )


def _request_log(row: Mapping[str, Any]) -> TraceRequest | None:
    # One clock for the whole log: what the schedule said where there was one, else when the request came.
    intended_s, prompt, completion = row.get("intended_s"), row["prompt_tokens"], row["completion_tokens"]
    if prompt is None or completion is None:
        return None
    at_s = row["actual_s"] if intended_s is None else intended_s
    return TraceRequest(float(at_s), int(prompt), int(completion))


def _burstgpt(row: Mapping[str, Any]) -> TraceRequest | None:
    answered = int(row["Response tokens"])
    at_s = float(row["Timestamp"])
    return TraceRequest(at_s, int(row["Request tokens"]), answered) if answered else None


def _azure(row: Mapping[str, Any]) -> TraceRequest:
    at = _azure_time(row["TIMESTAMP"])
    return TraceRequest(at.timestamp(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _azure_time(text: str) -> datetime:
    # The 2023 files write tenths of microseconds and no zone, those of 2024 a zone.
    head, dot, rest = text.partition(".")
    digits = rest[: next((i for i, c in enumerate(rest) if not c.isdigit()), len(rest))]
    at = datetime.fromisoformat(f"{head}{dot}{digits[:6]}{rest[len(digits) :]}")
    return at if at.tzinfo else at.replace(tzinfo=UTC)


_CSV_READERS: tuple[tuple[frozenset[str], _Reader], ...] = (
    (frozenset({"Timestamp", "Request tokens", "Response tokens"}), _burstgpt),
    (frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}), _azure),
)
