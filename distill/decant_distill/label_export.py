"""Everything a request store holds as one file, for tools that read JSONL or Parquet."""

import importlib
import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from decant.errors import MissingExtraError
from decant.files import file_aside, write_jsonl
from decant.store import RequestStore

_ROWS_PER_GROUP = 10_000


def export(store: RequestStore, path: Path) -> int:
    """Writes every row of the store and returns how many; `.parquet` needs pyarrow, all else is JSONL."""
    if _is_parquet(path):
        return _write_parquet(store, path)
    return write_jsonl(path, map(asdict, store.labels()))


def check_export(path: Path) -> None:
    """MissingExtraError before anything is paid for, where the file could not be written after it."""
    if _is_parquet(path):
        _load_pyarrow()


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _load_pyarrow() -> tuple[Any, Any]:
    # It has no types, and is needed by nothing else here.
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError("pyarrow", extra="parquet") from None


def _write_parquet(store: RequestStore, path: Path) -> int:
    pyarrow, parquet = _load_pyarrow()
    text, whole, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    kinds = {
        **dict.fromkeys(("key", "row_id", "status", "request", "response", "reasoning", "answer"), text),
        **dict.fromkeys(("finish_reason", "error_class", "error", "prompt_version", "teacher"), text),
        **dict.fromkeys(("sample", "attempts", "prompt_tokens", "completion_tokens"), whole),
        **dict.fromkeys(("cost_usd", "logprob", "latency_s", "updated_at"), real),
    }
    schema = pyarrow.schema(list(kinds.items()))
    count = 0
    labels = store.labels()
    with file_aside(path) as file, parquet.ParquetWriter(file, schema) as writer:
        while group := [asdict(label) for label in islice(labels, _ROWS_PER_GROUP)]:
            rows = [{**row, "request": json.dumps(row["request"])} for row in group]
            named = [{name: row[name] for name in kinds} for row in rows]
            writer.write_table(pyarrow.Table.from_pylist(named, schema=schema))
            count += len(group)
    return count
