"""`decant bench sweep`: the highest rate at which enough of the offered requests keep the objectives."""

import csv
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from decant.endpoint import Endpoint, open_endpoint
from decant.errors import EndpointError
from decant.files import write_json, write_text
from decant.hardware import provenance
from decant_bench.bench import REPORT_FILE, bench
from decant_bench.bench_config import BenchConfig
from decant_bench.bench_result import BenchResult
from decant_bench.event_loop import run_measuring

SWEEP_FILE, SWEEP_CSV = "sweep.json", "sweep.csv"

Outcome = Literal["meets", "misses", "invalid"]
Limit = Literal["server", "client", "steps", "none"]


class SweepConfig(BenchConfig):
    """A load whose rate is searched; `rate` is where the search starts."""

    attainment: float = Field(
        default=0.99, gt=0, le=1, description="share of offered requests that must keep the objectives"
    )
    tolerance: float = Field(default=0.1, gt=0, description="how close, as a share, the rate is to be found")
    steps: int = Field(default=12, ge=1, description="most runs")

    @model_validator(mode="after")
    def _can_be_swept(self) -> Self:
        if not self.slo.is_set:
            raise ValueError("a sweep needs an objective: set slo.ttft_s, slo.tpot_s or slo.e2e_s")
        if self.arrival not in ("poisson", "constant", "gamma"):
            raise ValueError(f"arrival {self.arrival} has no single rate to search")
        return self


CONFIG = SweepConfig


@dataclass(frozen=True, slots=True)
class Step:
    """One run of the sweep. `result` is None when no request completed."""

    rate: float
    outcome: Outcome
    result: BenchResult | None


@dataclass(frozen=True, slots=True)
class Found:
    """The highest rate that meets the objectives, None when the lowest tried does not, and what ended it.

    `limit` is "client" when the client could not keep up at the next rate: the server may do more.
    """

    rate: float | None
    limit: Limit


def run(config: SweepConfig) -> None:
    """Runs the search, writes sweep.json, sweep.csv and report.html, prints a line per step."""
    config.output.mkdir(parents=True, exist_ok=True)
    steps: list[Step] = []
    found = run_measuring(_sweep(config, steps))
    _write(config, steps, found)
    sys.stdout.write(f"{sweep_text(config, steps, found)}\n  written to {config.output}\n")


async def search(
    probe: Callable[[float], Awaitable[Outcome]], *, start: float, tolerance: float, steps: int
) -> Found:
    """The highest rate that meets: doubles or halves until it is bracketed, then halves the bracket.

    A rate that the client cannot offer properly bounds the search like a miss, and is named as the limit.
    """
    best: float | None = None
    worst: float | None = None
    limit: Limit = "none"
    rate = start
    for _ in range(steps):
        outcome = await probe(rate)
        if outcome == "meets":
            best = rate
        else:
            worst, limit = rate, "server" if outcome == "misses" else "client"
        if best is not None and worst is not None:
            if worst / best <= 1 + tolerance:
                return Found(best, limit)
            rate = math.sqrt(best * worst)
        else:
            rate = rate * 2 if worst is None else rate / 2
    return Found(best, "steps" if best is not None else limit)


def sweep_text(config: SweepConfig, steps: Sequence[Step], found: Found) -> str:
    """A line per step in order of rate, and what was found."""
    lines = [f"{config.title}: {config.attainment:.0%} of offered requests within {_objectives(config)}"]
    lines += [f"  {step.rate:8.3g}/s  {step.outcome:<8} {_step_words(step)}" for step in _by_rate(steps)]
    if found.rate is None:
        return "\n".join([*lines, "  no rate that was tried meets the objectives"])
    ends = {
        "server": "the next rate misses them",
        "client": "at the next rate this client was too slow: the server may do more",
        "steps": "the steps ran out: the true rate may be higher",
        "none": "",
    }
    return "\n".join([*lines, f"  highest rate that meets them: {found.rate:.3g}/s ({ends[found.limit]})"])


async def _sweep(config: SweepConfig, steps: list[Step]) -> Found:
    logs = config.output.with_name(f"{config.output.name}.logs")
    assert config.rate is not None
    async with open_endpoint(config.endpoint, log_dir=logs) as endpoint:

        async def probe(rate: float) -> Outcome:
            step = await _step(config, endpoint, rate, number=len(steps))
            steps.append(step)
            sys.stderr.write(f"{config.title}: {rate:.3g}/s {step.outcome}, {_step_words(step)}\n")
            return step.outcome

        return await search(probe, start=config.rate, tolerance=config.tolerance, steps=config.steps)


async def _step(config: SweepConfig, endpoint: Endpoint, rate: float, *, number: int) -> Step:
    own = {name: value for name, value in dict(config).items() if name in BenchConfig.model_fields}
    name = f"step-{number:02}"
    # Prompts of its own: a step must not find those of the last one in the server's cache.
    changes = {"rate": rate, "output": config.output / name, "name": name, "seed": config.seed + number}
    try:
        result = await bench(BenchConfig.model_validate({**own, **changes}), endpoint)
    except EndpointError:
        if number == 0:
            raise
        return Step(rate, "misses", None)
    share = (result.goodput or {}).get("share") or 0.0
    if share >= config.attainment and result.valid:
        return Step(rate, "meets", result)
    return Step(rate, "misses" if result.valid else "invalid", result)


def _step_words(step: Step) -> str:
    if step.result is None or step.result.goodput is None:
        return "no request completed"
    share, p95 = step.result.goodput["share"], step.result.latency["e2e_response_s"]["p95"]["value"]
    tail = "" if p95 is None else f", end to end p95 {1000 * p95:.0f} ms"
    return f"goodput {share:.1%}{tail}"


def _by_rate(steps: Sequence[Step]) -> list[Step]:
    return sorted(steps, key=lambda step: step.rate)


def _objectives(config: SweepConfig) -> str:
    return ", ".join(f"{name} {limit:g}" for name, limit in config.slo.model_dump().items() if limit)


def _write(config: SweepConfig, steps: Sequence[Step], found: Found) -> None:
    from decant_bench.sweep_html import sweep_page

    rows = [_row(step) for step in _by_rate(steps)]
    document = {
        "format_version": 1,
        "name": config.title,
        "rate": found.rate,
        "limit": found.limit,
        "attainment": config.attainment,
        "slo": config.slo.model_dump(),
        "steps": rows,
        **provenance(Path(__file__).parent),
        "config": config.model_dump(mode="json"),
    }
    write_json(config.output / SWEEP_FILE, document)
    with (config.output / SWEEP_CSV).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    write_text(config.output / REPORT_FILE, sweep_page(config.title, sweep_text(config, steps, found), rows))


def _row(step: Step) -> dict[str, Any]:
    row: dict[str, Any] = {"rate": step.rate, "outcome": step.outcome}
    result = step.result
    names = ("ttft_response_s", "e2e_response_s")
    row["goodput"] = None if result is None or result.goodput is None else result.goodput["share"]
    row["requests_per_s"] = None if result is None else result.throughput["requests_per_s"]
    for name in names:
        for q in ("p50", "p95", "p99"):
            row[f"{name.removesuffix('_s')}_{q}_s"] = (
                None if result is None else result.latency[name][q]["value"]
            )
    row["failed"] = None if result is None else result.counts["failed"]
    return row
