"""From a run's requests to its numbers: percentiles with intervals, goodput, throughput, errors by kind."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from decant.stats import Interval, interval_of, least_n, percentile_draws, wilson
from decant.timing import RequestTiming, percentile
from decant_bench.bench_config import SloConfig
from decant_bench.records import Record

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
_BLOCKS = 50
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Series:
    """One measure's values; those of a block hang together: neighbours in time, gaps of one answer."""

    values: npt.NDArray[np.float64]
    blocks: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Percentile:
    """A percentile with its 95 % interval; all None when n is below `needs`."""

    q: float
    value: float | None
    interval: Interval | None
    needs: int


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure in numbers."""

    n: int
    mean: float | None
    percentiles: tuple[Percentile, ...]

    def to_json(self) -> dict[str, Any]:
        """`n`, `mean` and an object per percentile."""
        found = {
            f"p{p.q:g}": {
                "value": p.value,
                "low": p.interval.low if p.interval else None,
                "high": p.interval.high if p.interval else None,
                "needs": p.needs,
            }
            for p in self.percentiles
        }
        return {"n": self.n, "mean": self.mean, **found}


def itl_of(timing: RequestTiming) -> tuple[float, ...]:
    """The gaps per token: as the server tells, or the chunks' gaps where there is a chunk for each token."""
    one_each = timing.completion_tokens == len(timing.chunk_times_s)
    return timing.itl_s or (timing.chunk_gaps_s if one_each else ())


def series_of(timings: Sequence[RequestTiming]) -> dict[str, Series]:
    """The measures of the completed requests, in seconds; failed ones have no latency, they are counted."""
    done = [timing for timing in timings if timing.ok]
    each: dict[str, list[tuple[float, ...]]] = {
        "ttft_response_s": [_one(timing.response_ttft_s) for timing in done],
        "ttft_service_s": [_one(timing.ttft_s) for timing in done],
        "e2e_response_s": [_one(timing.response_s) for timing in done],
        "e2e_service_s": [_one(timing.service_s) for timing in done],
        "tpot_s": [_one(timing.tpot_s) for timing in done],
        "itl_s": [itl_of(timing) for timing in done],
        "chunk_gap_s": [timing.chunk_gaps_s for timing in done],
    }
    # Neighbours in time share a queue: they are drawn together.
    block_of = np.arange(len(done)) * min(_BLOCKS, len(done)) // max(1, len(done))
    return {name: _series(values, block_of) for name, values in each.items()}


def measure(series: Series, *, seed: int) -> Measure:
    """Percentiles with block-bootstrap intervals; a tail is withheld where the sample cannot reach it."""
    n = len(series.values)
    if not n:
        return Measure(0, None, tuple(Percentile(q, None, None, least_n(q)) for q in PERCENTILES))
    shown = [q for q in PERCENTILES if n >= least_n(q)]
    values, blocks = series.values.tolist(), series.blocks.tolist()
    draws = percentile_draws(values, shown, blocks=blocks, seed=seed, resamples=_RESAMPLES)
    intervals = {q: interval_of(draws[:, place]) for place, q in enumerate(shown)}
    return Measure(
        n=n,
        mean=float(series.values.mean()),
        percentiles=tuple(
            Percentile(
                q,
                percentile(values, q) if q in intervals else None,
                intervals.get(q),
                least_n(q),
            )
            for q in PERCENTILES
        ),
    )


def latency_json(timings: Sequence[RequestTiming], *, seed: int) -> dict[str, Any]:
    """Every measure as result.json holds it."""
    return {name: measure(series, seed=seed).to_json() for name, series in series_of(timings).items()}


def goodput(timings: Sequence[RequestTiming], slo: SloConfig, *, span_s: float) -> dict[str, Any] | None:
    """How many of the *offered* requests were answered within the objectives; None without objectives."""
    if not slo.is_set:
        return None
    limits = {
        "ttft_s": [timing.response_ttft_s for timing in timings],
        "tpot_s": [timing.tpot_s for timing in timings],
        "e2e_s": [timing.response_s for timing in timings],
    }
    set_limits = {name: limit for name, limit in slo.model_dump().items() if limit is not None}
    kept = {
        name: [t.ok and _within(t, v, limit) for t, v in zip(timings, limits[name], strict=True)]
        for name, limit in set_limits.items()
    }
    good = sum(all(each) for each in zip(*kept.values(), strict=True))
    n = len(timings)
    return {
        "slo": set_limits,
        "good": good,
        "offered": n,
        "share": good / n if n else None,
        "interval": asdict(wilson(good, n)),
        "per_s": good / span_s if span_s > 0 else None,
        "kept_by_objective": {name: sum(each) / n if n else None for name, each in kept.items()},
    }


def span_s(timings: Sequence[RequestTiming]) -> float:
    """From the first send to the last answer, or to the last send where no answer came."""
    if not timings:
        return 0.0
    first_s = min(timing.actual_s for timing in timings)
    return max(timing.actual_s + (timing.e2e_s or 0.0) for timing in timings) - first_s


def throughput(timings: Sequence[RequestTiming]) -> dict[str, float | None]:
    """What came out per second, from the first send to the last answer."""
    whole_s = span_s(timings)
    done = [timing for timing in timings if timing.ok]

    def rate(count: int) -> float | None:
        return count / whole_s if whole_s > 0 else None

    return {
        "span_s": whole_s,
        "requests_per_s": rate(len(done)),
        "prompt_tokens_per_s": rate(sum(t.prompt_tokens or 0 for t in done)),
        "completion_tokens_per_s": rate(sum(t.completion_tokens or 0 for t in done)),
    }


def error_counts(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Failures by kind: how many, and the first one's words."""
    kinds = Counter(record.timing.error_kind for record in records if record.timing.error_kind)
    examples: Mapping[str | None, str | None] = {
        record.timing.error_kind: record.error for record in reversed(records) if record.error
    }
    return {str(kind): {"n": n, "example": examples.get(kind)} for kind, n in kinds.most_common()}


def _one(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)


def _within(timing: RequestTiming, value: float | None, limit: float) -> bool:
    # Where nothing says how fast it was, the objective is not shown to be kept; but a single token keeps any
    # objective on the tokens after it.
    return timing.completion_tokens in (0, 1) if value is None else value <= limit


def _series(each: Sequence[tuple[float, ...]], block_of: npt.NDArray[np.int64]) -> Series:
    values = np.asarray([value for values in each for value in values], dtype=np.float64)
    return Series(values, np.repeat(block_of, [len(values) for values in each]))
