"""The same numbers as tables: percentiles in latency.csv, a row per request in requests.csv."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from decant_bench.bench_result import BenchResult
from decant_bench.measures import PERCENTILES
from decant_bench.records import REQUESTS_FILE, Record, read_records

LATENCY_CSV, REQUESTS_CSV = "latency.csv", "requests.csv"

_REQUEST_COLUMNS = (
    "request_id",
    "due_s",
    "sent_s",
    "send_delay_s",
    "ttfb_s",
    "ttft_s",
    "ttft_response_s",
    "e2e_s",
    "e2e_response_s",
    "tpot_s",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "status",
    "finish_reason",
    "error_kind",
)


def write_csvs(folder: Path, result: BenchResult) -> None:
    """Writes both files; times of requests count from the start of the load, an empty cell is unknown.

    The requests are those of requests.jsonl, in its order: as they ended.
    """
    head = ("window", "measure", "n", "mean", *(f"p{q:g}{part}" for q in PERCENTILES for part in _PARTS))
    _write(folder / LATENCY_CSV, head, _latency_rows(result))
    rows = (
        _request_row(record, float(result.load["start_s"])) for record in read_records(folder / REQUESTS_FILE)
    )
    _write(folder / REQUESTS_CSV, _REQUEST_COLUMNS, rows)


_PARTS = ("", "_low", "_high")


def _latency_rows(result: BenchResult) -> Iterator[Sequence[Any]]:
    for window, measures in (("whole", result.latency), ("steady", result.steady["latency"])):
        for name, found in measures.items():
            cells = [found[f"p{q:g}"][key] for q in PERCENTILES for key in ("value", "low", "high")]
            yield [window, name, found["n"], found["mean"], *cells]


def _request_row(record: Record, start_s: float) -> Sequence[Any]:
    timing = record.timing
    return [
        timing.request_id,
        None if timing.intended_s is None else timing.intended_s - start_s,
        timing.actual_s - start_s if record.was_sent else None,
        timing.send_delay_s if record.was_sent and timing.intended_s is not None else None,
        timing.ttfb_s,
        timing.ttft_s,
        timing.response_ttft_s,
        timing.e2e_s,
        timing.response_s,
        timing.tpot_s,
        timing.prompt_tokens,
        timing.completion_tokens,
        timing.cached_tokens,
        timing.status,
        timing.finish_reason,
        timing.error_kind,
    ]


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
