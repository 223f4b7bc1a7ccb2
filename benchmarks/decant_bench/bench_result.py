"""result.json: what a run measured, how, and whether it may be trusted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from decant.endpoint import Endpoint
from decant.errors import DataError
from decant.files import sha256_path
from decant.hardware import describe_command, describe_commit, describe_machine, describe_versions
from decant.timing import RequestTiming, summarize
from decant_bench.bench_config import BenchConfig
from decant_bench.bench_run import Outcome
from decant_bench.columns import Floats, RequestColumns, known, read_columns
from decant_bench.measures import error_counts, goodput, latency_json, percentile_of, span_s, throughput
from decant_bench.plan import Plan
from decant_bench.records import REQUESTS_FILE, Record, read_records
from decant_bench.self_check import Measured
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
    """A result folder, read: the result and its requests as columns, in order of sending."""

    path: Path
    result: BenchResult
    requests: RequestColumns

    @property
    def records(self) -> list[Record]:
        """The requests one by one, read anew; for runs that are small enough."""
        records = read_records(self.path / REQUESTS_FILE)
        return sorted(records, key=lambda record: record.timing.actual_s)

    @property
    def timings(self) -> list[RequestTiming]:
        """The timings of all offered requests; for runs that are small enough."""
        return [record.timing for record in self.records]


def build_result(config: BenchConfig, endpoint: Endpoint, plan: Plan, outcome: Outcome) -> BenchResult:
    """The whole document of one run."""
    requests = outcome.requests
    doubts = outcome.client.doubts(_typical(requests), share=config.error_share)
    latency = latency_json(requests, seed=config.seed)
    completed = int(requests.ok.sum())
    return BenchResult(
        name=config.title,
        valid=not doubts,
        doubts=tuple(doubts),
        endpoint=_endpoint_json(config, endpoint),
        load=_load_json(config, plan, outcome),
        counts={
            "offered": len(requests),
            "sent": int(requests.was_sent.sum()),
            "completed": completed,
            "failed": len(requests) - completed,
        },
        errors=error_counts(requests),
        latency=latency,
        throughput=throughput(requests),
        goodput=goodput(requests, config.slo, span_s=span_s(requests)),
        steady=_steady_json(config, requests, latency),
        tokens=_tokens_json(requests, plan.counter),
        client=outcome.client.to_json(),
        server=outcome.server,
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
    return BenchFolder(folder, result, read_columns(folder))


def _typical(requests: RequestColumns) -> Measured:
    done = requests.pick(requests.ok)
    firsts = known(np.where(np.isnan(done.ttft_s), done.e2e_s, done.ttft_s))
    gaps = np.where(done.gap_tokens > 0, done.gap_s / np.maximum(done.gap_tokens, 1), done.gap_s)
    # Chunks that arrive in one read have no gap that could be disturbed.
    apart = gaps[gaps > 0]
    first_s = percentile_of(firsts, 50) if len(firsts) else 0.0
    return Measured(first_s, percentile_of(apart, 50) if len(apart) else None)


def _steady_json(config: BenchConfig, requests: RequestColumns, whole: dict[str, Any]) -> dict[str, Any]:
    done = requests.pick(requests.ok)
    window = steady_window(np.nan_to_num(done.response_s))
    sent_s = done.actual_s[window.first : window.last]
    first_s, last_s = float(sent_s[0]), float(sent_s[-1])
    # Failures inside the window are part of it: they were offered then.
    inside = requests.pick((requests.actual_s >= first_s) & (requests.actual_s <= last_s))
    began_s = float(requests.actual_s.min())
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


def _tokens_json(requests: RequestColumns, counter: TokenCounter) -> dict[str, Any]:
    """Tokens as the server counts them, beside those that were planned and those the tokenizer finds."""
    done = requests.pick(requests.ok)
    told = known(done.completion_tokens)
    return {
        "unit": counter.unit,
        "prompt": summarize(known(done.prompt_tokens).tolist()),
        "prompt_over_planned": summarize(known(done.prompt_tokens - done.planned_prompt_tokens).tolist()),
        "completion": summarize(told.tolist()),
        "usage_missing": len(done) - len(told),
        "recount": _recount(known(done.recount)),
    }


def _recount(differences: Floats) -> dict[str, Any] | None:
    """How often the server's count of an answer differs from the tokenizer's, the end token aside."""
    if not len(differences):
        return None
    return {
        "n": len(differences),
        "differ_share": float(np.mean((differences < 0) | (differences > 1))),
        "difference_mean": float(differences.mean()),
    }
