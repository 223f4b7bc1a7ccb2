"""Reading datasets row by row: a bad line is kept with its number and reason, the rest goes on.

The file's suffix says what it is: `.csv` and `.tsv` with a header line, `.parquet`, `.arrow` (Arrow's
stream), and JSONL for all others. A folder is a Hugging Face dataset.
"""

import csv
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from decant.dataset_folder import dataset_files
from decant.errors import DataError, MissingExtraError

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
_ROWS_PER_READ = 1000
_TEXT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Row:
    """One usable row of a dataset; `line` counts a text file's lines, or a Parquet file's rows, from 1."""

    line: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that is not a JSON object or lacks a field; `text` is its beginning."""

    line: int
    reason: str
    text: str


def read_rows(path: Path, *, required: Sequence[str] = ()) -> Iterator[Row | BadRow]:
    """Yields every row of a dataset, blank lines aside; DataError only when the file itself cannot be read.

    Values of CSV and TSV are text.
    """
    if (files := dataset_files(path)) is not None:
        yield from _read_files(files, required)
        return
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            yield from _read_csv(path, required, delimiter="\t" if suffix == ".tsv" else ",")
        elif suffix == ".parquet":
            yield from _read_parquet(path, required)
        elif suffix == ".arrow":
            yield from _read_arrow(path, required)
        else:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield _parse(number, line, required)
    except OSError as error:
        raise DataError(f"{path}: cannot read the dataset ({error.strerror or error})") from None


def read_good_rows(path: Path, *, required: Sequence[str] = ()) -> list[Row]:
    """All rows of a file that must have no bad line; DataError names the first one."""
    rows: list[Row] = []
    for row in read_rows(path, required=required):
        if isinstance(row, BadRow):
            raise DataError(f"{path}:{row.line}: {row.reason}")
        rows.append(row)
    return rows


def _read_files(files: Sequence[Path], required: Sequence[str]) -> Iterator[Row | BadRow]:
    """The rows of several files as if they were one: their numbers go on."""
    before = last = 0
    for file in files:
        for row in read_rows(file, required=required):
            last = before + row.line
            yield replace(row, line=last)
        before = last


def _parse(number: int, line: bytes, required: Sequence[str]) -> Row | BadRow:
    text = line[:_TEXT_CHARACTERS].decode("utf-8", errors="replace").strip()
    try:
        fields = json.loads(line)
    except UnicodeDecodeError:
        return BadRow(number, "not UTF-8", text)
    except (ValueError, RecursionError) as error:
        return BadRow(number, f"not JSON ({error})", text)
    if not isinstance(fields, dict):
        return BadRow(number, f"not a JSON object but {type(fields).__name__}", text)
    return _checked(number, cast(dict[str, Any], fields), text, required)


def _checked(number: int, row: dict[str, Any], text: str, required: Sequence[str]) -> Row | BadRow:
    missing = [name for name in required if name not in row]
    if missing:
        return BadRow(number, f"lacks the field {', '.join(missing)}", text)
    return Row(number, row)


def _read_csv(path: Path, required: Sequence[str], *, delimiter: str) -> Iterator[Row | BadRow]:
    # What is not UTF-8 comes through as surrogates, so that it spoils its own row only.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names: list[str] | None = None
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield BadRow(number, f"not CSV ({error})", "")
                continue
            if cells is None:
                return
            if names is None:
                names = _header(path, cells)
            elif cells:
                yield _csv_row(number, names, cells, required)


def _header(path: Path, cells: list[str]) -> list[str]:
    if len(set(cells)) < len(cells) or not all(cells):
        raise DataError(f"{path}:1: a header with empty or repeated names; name each column once")
    return cells


def _csv_row(number: int, names: list[str], cells: list[str], required: Sequence[str]) -> Row | BadRow:
    text = ",".join(cells)[:_TEXT_CHARACTERS]
    if not all(cell.isascii() or _is_utf8(cell) for cell in cells):
        return BadRow(number, "not UTF-8", text.encode("utf-8", "replace").decode())
    if len(cells) != len(names):
        return BadRow(number, f"{len(cells)} cells under {len(names)} column names", text)
    return _checked(number, dict(zip(names, cells, strict=True)), text, required)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _read_parquet(path: Path, required: Sequence[str]) -> Iterator[Row | BadRow]:
    with _opened(path, "pyarrow.parquet", lambda parquet: parquet.ParquetFile(path)) as file:
        batches = file.iter_batches(batch_size=_ROWS_PER_READ)
        yield from _table_rows(path, batches, required)


def _read_arrow(path: Path, required: Sequence[str]) -> Iterator[Row | BadRow]:
    with _opened(path, "pyarrow", lambda pyarrow: pyarrow.ipc.open_stream(str(path))) as file:
        pieces = (
            batch.slice(start, _ROWS_PER_READ)
            for batch in file
            for start in range(0, batch.num_rows, _ROWS_PER_READ)
        )
        yield from _table_rows(path, pieces, required)


def _opened(path: Path, module: str, opening: Callable[[Any], Any]) -> Any:
    try:
        # It has no types, and is needed by nothing else here.
        library: Any = importlib.import_module(module)
    except ImportError:
        raise MissingExtraError("pyarrow", extra="parquet") from None
    try:
        return opening(library)
    except ValueError as error:
        raise DataError(f"{path}: {error}; is it a whole file?") from None


def _table_rows(path: Path, batches: Iterator[Any], required: Sequence[str]) -> Iterator[Row | BadRow]:
    """Rows out of Arrow's batches; ValueError is the root of its errors on broken files."""
    number = 0
    try:
        for batch in batches:
            for fields in batch.to_pylist():
                number += 1
                text = str(fields)[:_TEXT_CHARACTERS]
                yield _checked(number, {str(name): value for name, value in fields.items()}, text, required)
    except ValueError as error:
        raise DataError(f"{path}: after row {number}: {error}; is it a whole file?") from None
