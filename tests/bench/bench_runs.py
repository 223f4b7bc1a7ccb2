"""Finished benchmark runs with known latencies."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decant.timing import RequestTiming
from decant_bench.bench_result import RESULT_FILE, BenchResult
from decant_bench.records import REQUESTS_FILE, Record


def write_run(folder: Path, latencies_s: Sequence[float | None], **changes: Any) -> Path:
    """Writes a result folder whose requests took so long, due every 0.1 s; None failed."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [_record(number, latency_s) for number, latency_s in enumerate(latencies_s)]
    lines = [json.dumps(record.to_dict()) for record in records]
    (folder / REQUESTS_FILE).write_text("\n".join(lines), encoding="utf-8")
    result = run_result(folder.name, failed=sum(v is None for v in latencies_s), n=len(records))
    result = result.model_copy(update=changes)
    (folder / RESULT_FILE).write_text(result.model_dump_json(), encoding="utf-8")
    return folder


def run_result(name: str, *, n: int = 100, failed: int = 0) -> BenchResult:
    """A valid result of a constant load, without numbers."""
    load = {"arrival": "constant", "rate": 10.0, "rate_end": None, "clients": None, "requests": n}
    load |= {"route": "chat", "stream": True, "source_sha256": None}
    return BenchResult(
        name=name,
        valid=True,
        doubts=(),
        endpoint={},
        load=load,
        counts={"offered": n, "sent": n, "completed": n - failed, "failed": failed},
        errors={},
        latency={},
        throughput={},
        goodput=None,
        steady={},
        tokens={},
        client={},
        server=None,
        warmup={},
        seed=0,
        started_at="2026-01-01T00:00:00+00:00",
        hardware={"cpu": "one", "cores": 2, "gpus": []},
        versions={},
        commit=None,
        command="decant bench run",
        config={"workload": {}},
    )


def _record(number: int, latency_s: float | None) -> Record:
    failed = latency_s is None
    timing = RequestTiming(
        request_id=f"r{number}",
        intended_s=0.1 * number,
        actual_s=0.1 * number,
        ttft_s=None if latency_s is None else latency_s / 2,
        e2e_s=latency_s,
        completion_tokens=None if failed else 5,
        error_kind="timeout" if failed else None,
    )
    return Record(index=number, turn=0, timing=timing)
