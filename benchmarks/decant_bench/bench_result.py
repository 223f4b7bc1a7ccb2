"""result.json: what a run measured, how, and whether it may be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from decant.endpoint import Endpoint
from decant.errors import DataError
from decant.files import sha256_path
from decant.hardware import describe_command, describe_commit, describe_machine, describe_versions
from decant.timing import RequestTiming, percentile, summarize
from decant_bench.bench_config import BenchConfig
from decant_bench.bench_run import Outcome
from decant_bench.measures import error_counts, goodput, itl_of, latency_json, span_s, throughput
from decant_bench.plan import Plan
from decant_bench.records import REQUESTS_FILE, Record, read_records
from decant_bench.self_check import Measured
from decant_bench.server_timing import server_json
from decant_bench.steady import steady_window
from decant_bench.tokens import TokenCounter

RESULT_FILE = "result.json"


class BenchResult(BaseModel):
    """What result.json holds; benchmarks/README.md says what each key means."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    name: str
    valid: bool
    doubts: tuple[str, ...]
    endpoint: dict[str, Any]
    load: dict[str, Any]
    counts: dict[str, Any]
    errors: dict[str, Any]
    latency: dict[str, Any]
    throughput: dict[str, Any]
    goodput: dict[str, Any] | None
    steady: dict[str, Any]
    tokens: dict[str, Any]
    client: dict[str, Any]
    server: dict[str, Any] | None
    warmup: dict[str, int]
    seed: int
    started_at: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    command: str
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BenchFolder:
    """A result folder, read: the result and its requests in order of sending."""

    path: Path
    result: BenchResult
    records: tuple[Record, ...]

    @property
    def timings(self) -> list[RequestTiming]:
        """The timings of all offered requests."""
        return [record.timing for record in self.records]


def build_result(config: BenchConfig, endpoint: Endpoint, plan: Plan, outcome: Outcome) -> BenchResult:
    """The whole document of one run."""
    records = outcome.records
    timings = [record.timing for record in records]
    doubts = outcome.client.doubts(_typical(timings), share=config.error_share)
    latency = latency_json(timings, seed=config.seed)
    completed = sum(timing.ok for timing in timings)
    return BenchResult(
        name=config.title,
        valid=not doubts,
        doubts=tuple(doubts),
        endpoint=_endpoint_json(config, endpoint),
        load=_load_json(config, plan, outcome),
        counts={
            "offered": len(records),
            "sent": sum(record.was_sent for record in records),
            "completed": completed,
            "failed": len(records) - completed,
        },
        errors=error_counts(records),
        latency=latency,
        throughput=throughput(timings),
        goodput=goodput(timings, config.slo, span_s=span_s(timings)),
        steady=_steady_json(config, timings, latency),
        tokens=_tokens_json(records, plan.counter),
        client=outcome.client.to_json(),
        server=server_json(timings, outcome.server),
        warmup=dict(outcome.warmup),
        seed=config.seed,
        started_at=outcome.started_at.isoformat(timespec="milliseconds"),
        hardware=describe_machine(),
        versions=describe_versions(),
        commit=describe_commit(Path(__file__).parent),
        command=describe_command(),
        config=config.model_dump(mode="json"),
    )


def read_bench(folder: Path) -> BenchFolder:
    """Reads a result folder; DataError says what it lacks."""
    file = folder / RESULT_FILE
    if not file.is_file() or not (folder / REQUESTS_FILE).is_file():
        raise DataError(f"{folder}: holds no benchmark run; give a folder that `decant bench run` wrote")
    try:
        result = BenchResult.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{file}: {where}: {first['msg']}; run the benchmark again") from None
    records = sorted(read_records(folder / REQUESTS_FILE), key=lambda record: record.timing.actual_s)
    return BenchFolder(folder, result, tuple(records))


def _typical(timings: Sequence[RequestTiming]) -> Measured:
    done = [timing for timing in timings if timing.ok]
    firsts = [t.ttft_s if t.ttft_s is not None else t.e2e_s for t in done]
    gaps = [gap for timing in done for gap in itl_of(timing) or timing.chunk_gaps_s]
    # Chunks that arrive in one read have no gap that could be disturbed.
    apart = [gap for gap in gaps if gap > 0]
    known = [first for first in firsts if first is not None]
    return Measured(percentile(known, 50) if known else 0.0, percentile(apart, 50) if apart else None)


def _steady_json(
    config: BenchConfig, timings: Sequence[RequestTiming], whole: dict[str, Any]
) -> dict[str, Any]:
    done = [timing for timing in timings if timing.ok]
    window = steady_window([timing.response_s or 0.0 for timing in done])
    kept = done[window.first : window.last]
    first_s, last_s = kept[0].actual_s, kept[-1].actual_s
    # Failures inside the window are part of it: they were offered then.
    inside = [timing for timing in timings if first_s <= timing.actual_s <= last_s]
    began_s = min(timing.actual_s for timing in timings)
    return {
        "found": window.found,
        "reason": window.reason,
        "from_s": first_s - began_s,
        "to_s": last_s - began_s,
        "n": len(inside),
        "latency": latency_json(inside, seed=config.seed) if window.found else whole,
        "throughput": throughput(inside),
        "goodput": goodput(inside, config.slo, span_s=span_s(inside)),
    }


def _endpoint_json(config: BenchConfig, endpoint: Endpoint) -> dict[str, Any]:
    source = str(config.endpoint.serve or config.endpoint.base_url)
    engine = str(endpoint.description.get("engine") or "remote")
    return {"model": endpoint.model, "source": source, "engine": engine, "says": endpoint.description}


def _load_json(config: BenchConfig, plan: Plan, outcome: Outcome) -> dict[str, Any]:
    offsets = plan.offsets_s
    source = config.trace or config.workload.data
    return {
        "arrival": config.arrival,
        "rate": config.rate,
        "rate_end": config.rate_end,
        "gamma_shape": config.gamma_shape if config.arrival == "gamma" else None,
        "clients": config.concurrency if offsets is None else None,
        "conversations": len(plan.conversations),
        "requests": plan.requests,
        "offered_per_s": len(offsets) / offsets[-1] if offsets and offsets[-1] > 0 else None,
        "route": config.route,
        "stream": config.stream,
        "start_s": outcome.start_s,
        "source": None if source is None else str(source),
        "source_sha256": None if source is None else sha256_path(source),
    }


def _tokens_json(records: Sequence[Record], counter: TokenCounter) -> dict[str, Any]:
    """Tokens as the server counts them, beside those that were planned and those the tokenizer finds."""
    done = [record for record in records if record.timing.ok]
    told = [record for record in done if record.timing.completion_tokens is not None]
    prompt = [r.timing.prompt_tokens for r in done if r.timing.prompt_tokens is not None]
    extra = [
        r.timing.prompt_tokens - r.planned_prompt_tokens
        for r in done
        if r.timing.prompt_tokens is not None and r.planned_prompt_tokens is not None
    ]
    return {
        "unit": counter.unit,
        "prompt": summarize(prompt),
        "prompt_over_planned": summarize(extra),
        "completion": summarize([r.timing.completion_tokens or 0 for r in told]),
        "usage_missing": len(done) - len(told),
        "recount": _recount(told, counter),
    }


def _recount(told: Sequence[Record], counter: TokenCounter) -> dict[str, Any] | None:
    """How often the server's count of an answer differs from the tokenizer's, the end token aside."""
    texts = [(record.text, record.timing.completion_tokens) for record in told if record.text is not None]
    if counter.unit != "tokens" or not texts:
        return None
    differences = np.asarray([(usage or 0) - counter.count(text or "") for text, usage in texts])
    return {
        "n": len(texts),
        "differ_share": float(np.mean((differences < 0) | (differences > 1))),
        "difference_mean": float(differences.mean()),
    }
