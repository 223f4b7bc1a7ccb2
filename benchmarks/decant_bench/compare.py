"""`decant bench compare A B`: which run is faster, percentile by percentile, or that the runs do not tell."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from decant.config import Config, InputPath, OptionalOutputPath
from decant.errors import DataError
from decant.files import write_json
from decant.stats import Interval, interval_of, least_n, percentile_draws
from decant.timing import percentile
from decant_bench import number_text as words
from decant_bench.bench_result import BenchFolder, BenchResult, read_bench
from decant_bench.bench_text import NAMES
from decant_bench.measures import Series, series_of
from decant_bench.self_check import InvalidRun

Verdict = Literal["faster", "slower", "not distinguishable"]

MEASURES = ("ttft_response_s", "e2e_response_s", "e2e_service_s", "tpot_s", "itl_s")
PERCENTILES = (50.0, 95.0, 99.0)
_CONFIDENCE = 0.95
_RESAMPLES = 4000
_SAME = ("arrival", "rate", "rate_end", "clients", "requests", "route", "stream", "source_sha256")


class CompareConfig(Config):
    """Two runs to compare."""

    positional: ClassVar[tuple[str, ...]] = ("before", "after")

    before: InputPath = Field(description="result folder of the first run")
    after: InputPath = Field(description="result folder of the second run")
    output: OptionalOutputPath = Field(default=None, description="JSON file for the comparison")
    margin: float = Field(default=0.0, ge=0, lt=1, description="a change within this share does not matter")
    seed: int = Field(default=0, ge=0, description="seed of the intervals")


CONFIG = CompareConfig


@dataclass(frozen=True, slots=True)
class RatioRow:
    """One percentile of one measure: after / before, with an interval that holds for all rows together."""

    measure: str
    q: float
    before_s: float
    after_s: float
    ratio: float
    interval: Interval
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """The row for the JSON file."""
        return {
            "measure": self.measure,
            "percentile": self.q,
            "before_s": self.before_s,
            "after_s": self.after_s,
            "ratio": self.ratio,
            "low": self.interval.low,
            "high": self.interval.high,
            "verdict": self.verdict,
        }


def run(config: CompareConfig) -> None:
    """Prints the table, writes it where asked; InvalidRun when one of the runs is marked invalid."""
    before, after = read_bench(config.before), read_bench(config.after)
    rows = compare(before, after, margin=config.margin, seed=config.seed)
    notes = list(differences(before.result, after.result))
    if config.output is not None:
        write_json(config.output, _document(config, before, after, rows, notes))
    sys.stdout.write(comparison_text(before.result.name, after.result.name, rows, notes) + "\n")
    invalid = [folder.path for folder in (before, after) if not folder.result.valid]
    if invalid:
        named = " and ".join(str(path) for path in invalid)
        raise InvalidRun(f"{named} marked not valid: the verdicts cannot be relied on; measure again")


def compare(before: BenchFolder, after: BenchFolder, *, margin: float, seed: int) -> list[RatioRow]:
    """A row for every percentile that both runs can bound; DataError when there is none.

    The confidence is split over the rows (Bonferroni), so that all verdicts hold together at 95 %.
    """
    first, second = series_of(before.requests), series_of(after.requests)
    shown: list[tuple[str, list[float]]] = []
    for name in _measures(before.result, after.result):
        n = min(len(first[name].values), len(second[name].values))
        shown.append((name, [q for q in PERCENTILES if n >= least_n(q)]))
    count = sum(len(qs) for _, qs in shown)
    if not count:
        needs = least_n(PERCENTILES[0])
        raise DataError(f"nothing to compare: a median needs {needs} completed requests in both runs")
    confidence, seeds = confidence_of(count), (2 * seed, 2 * seed + 1)
    return [
        row
        for name, qs in shown
        if qs
        for row in ratio_rows(name, qs, (first[name], second[name]), confidence, margin=margin, seeds=seeds)
    ]


def confidence_of(rows: int) -> float:
    """The confidence of one row when all of so many are to hold together."""
    return 1 - (1 - _CONFIDENCE) / rows


def verdict_of(interval: Interval, *, margin: float) -> Verdict:
    """What an interval of after / before says: a verdict only where all of it lies beyond the margin."""
    if interval.high < 1 - margin:
        return "faster"
    return "slower" if interval.low > 1 + margin else "not distinguishable"


def differences(before: BenchResult, after: BenchResult) -> Iterator[str]:
    """What else differs between two runs, in sentences: each may explain a ratio."""
    for key in _SAME:
        if before.load[key] != after.load[key]:
            yield f"load: {key} was {before.load[key]} and is {after.load[key]}"
    for key in ("cpu", "cores", "gpus"):
        if before.hardware[key] != after.hardware[key]:
            yield f"machine: {key} was {before.hardware[key]} and is {after.hardware[key]}"
    if before.config["workload"] != after.config["workload"] or before.seed != after.seed:
        yield "the requests are not the same: another workload or seed"
    for run_name, result in (("before", before), ("after", after)):
        if result.counts["failed"]:
            failed, offered = result.counts["failed"], result.counts["offered"]
            yield f"{run_name}: {failed} of {offered} requests failed and have no latency"
        for doubt in result.doubts:
            yield f"{run_name} is not valid: {doubt}"


def comparison_text(before: str, after: str, rows: Sequence[RatioRow], notes: Sequence[str]) -> str:
    """The table, a verdict per row, and what to read before it."""
    lines = [f"{after} against {before} (ratio below 1: {after} is faster; intervals hold together at 95%)"]
    lines += ratio_table("before, ms", "after, ms", rows)
    return "\n".join([*lines, *(f"  before comparing: {note}" for note in notes)])


def ratio_table(before: str, after: str, rows: Sequence[RatioRow]) -> list[str]:
    """A line per row under the names of the two sides."""
    lines = [f"  {'':<24} {before:>11} {after:>11} {'ratio':>7}  {'interval':<16} verdict"]
    for row in rows:
        name = f"{NAMES[row.measure]}, p{row.q:g}"
        interval = f"[{row.interval.low:.3f}, {row.interval.high:.3f}]"
        lines.append(
            f"  {name:<24} {words.milliseconds(row.before_s):>11} {words.milliseconds(row.after_s):>11}"
            f" {row.ratio:>7.3f}  {interval:<16} {row.verdict}"
        )
    return lines


def _measures(before: BenchResult, after: BenchResult) -> list[str]:
    closed = before.load["clients"] is not None and after.load["clients"] is not None
    # In a closed loop nothing is due, so both latencies are the same numbers.
    return [name for name in MEASURES if not (closed and name == "e2e_service_s")]


def ratio_rows(
    name: str,
    qs: Sequence[float],
    pair: tuple[Series, Series],
    confidence: float,
    *,
    margin: float,
    seeds: tuple[int, int],
) -> Iterator[RatioRow]:
    """A row per percentile of one measure; one seed for both sides draws the same blocks of both."""
    draws = [
        percentile_draws(
            each.values.tolist(),
            qs,
            blocks=each.blocks.tolist(),
            seed=seed,
            resamples=_RESAMPLES,
        )
        for seed, each in zip(seeds, pair, strict=True)
    ]
    most = min(len(each) for each in draws)
    for place, q in enumerate(qs):
        before_s, after_s = (percentile(each.values.tolist(), q) for each in pair)
        if before_s <= 0 or float(np.min(draws[0][:, place])) <= 0:
            continue  # tokens that came in one read: there is no ratio to nothing
        ratios = draws[1][:most, place] / draws[0][:most, place]
        interval = interval_of(ratios, confidence)
        ratio = after_s / before_s
        yield RatioRow(name, q, before_s, after_s, ratio, interval, verdict_of(interval, margin=margin))


def _document(
    config: CompareConfig,
    before: BenchFolder,
    after: BenchFolder,
    rows: Sequence[RatioRow],
    notes: Sequence[str],
) -> dict[str, Any]:
    return {
        "format_version": 1,
        "before": _named(config.before, before.result),
        "after": _named(config.after, after.result),
        "margin": config.margin,
        "rows": [row.to_json() for row in rows],
        "notes": list(notes),
    }


def _named(folder: Path, result: BenchResult) -> dict[str, Any]:
    return {"folder": str(folder), "name": result.name, "valid": result.valid, "command": result.command}
