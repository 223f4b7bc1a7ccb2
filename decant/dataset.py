"""Reading datasets line by line: a bad line is kept with its number and reason, the rest goes on."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from decant.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One usable line of a JSONL dataset; `line` counts from 1."""

    line: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that is not a JSON object or lacks a field; `text` is its beginning."""

    line: int
    reason: str
    text: str


def read_rows(path: Path, *, required: Sequence[str] = ()) -> Iterator[Row | BadRow]:
    """Yields every non-blank line of a JSONL file; DataError only when the file itself cannot be read."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _parse(number, line, required)
    except OSError as error:
        raise DataError(f"{path}: cannot read the dataset ({error.strerror})") from None


def read_good_rows(path: Path, *, required: Sequence[str] = ()) -> list[Row]:
    """All rows of a file that must have no bad line; DataError names the first one."""
    rows: list[Row] = []
    for row in read_rows(path, required=required):
        if isinstance(row, BadRow):
            raise DataError(f"{path}:{row.line}: {row.reason}")
        rows.append(row)
    return rows


def _parse(number: int, line: bytes, required: Sequence[str]) -> Row | BadRow:
    text = line[:200].decode("utf-8", errors="replace").strip()
    try:
        fields = json.loads(line)
    except UnicodeDecodeError:
        return BadRow(number, "not UTF-8", text)
    except (ValueError, RecursionError) as error:
        return BadRow(number, f"not JSON ({error})", text)
    if not isinstance(fields, dict):
        return BadRow(number, f"not a JSON object but {type(fields).__name__}", text)
    row = cast(dict[str, Any], fields)
    missing = [name for name in required if name not in row]
    if missing:
        return BadRow(number, f"lacks the field {', '.join(missing)}", text)
    return Row(number, row)
