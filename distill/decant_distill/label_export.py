"""Everything a request store holds as one file, for tools that read JSONL or Parquet."""

import importlib
import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from decant.errors import DataError
from decant.files import write_jsonl
from decant.store import RequestStore

_ROWS_PER_GROUP = 10_000


def export(store: RequestStore, path: Path) -> int:
    """Writes every row of the store and returns how many; `.parquet` needs pyarrow, all else is JSONL."""
    if path.suffix.lower() == ".parquet":
        return _write_parquet(store, path)
    return write_jsonl(path, map(asdict, store.labels()))


def _write_parquet(store: RequestStore, path: Path) -> int:
    try:
        # It has no types, and is needed by nothing else here.
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        advice = "pip install pyarrow, or export to a .jsonl file"
        raise DataError(f"{path}: pyarrow, which writes Parquet, is not installed; {advice}") from None
    text, whole, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    kinds = {
        **dict.fromkeys(("key", "row_id", "status", "request", "response", "reasoning", "answer"), text),
        **dict.fromkeys(("finish_reason", "error_class", "error", "prompt_version", "teacher"), text),
        **dict.fromkeys(("sample", "attempts", "prompt_tokens", "completion_tokens"), whole),
        **dict.fromkeys(("cost_usd", "logprob", "latency_s", "updated_at"), real),
    }
    schema = pyarrow.schema(list(kinds.items()))
    aside = path.with_name(f".{path.name}.aside")
    count = 0
    labels = store.labels()
    with parquet.ParquetWriter(aside, schema) as writer:
        while group := [asdict(label) for label in islice(labels, _ROWS_PER_GROUP)]:
            rows = [{**row, "request": json.dumps(row["request"])} for row in group]
            named = [{name: row[name] for name in kinds} for row in rows]
            writer.write_table(pyarrow.Table.from_pylist(named, schema=schema))
            count += len(group)
    aside.replace(path)
    return count
