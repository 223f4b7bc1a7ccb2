"""From a run's requests to its numbers: percentiles with intervals, goodput, throughput, errors by kind."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from decant.stats import Interval, interval_of, least_n, percentile_draws, wilson
from decant_bench.bench_config import SloConfig
from decant_bench.columns import Floats, RequestColumns, known

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


def series_of(requests: RequestColumns) -> dict[str, Series]:
    """The measures of the completed requests, in seconds; failed ones have no latency, they are counted."""
    done = requests.pick(requests.ok)
    # Neighbours in time share a queue: they are drawn together.
    block_of = np.arange(len(done)) * min(_BLOCKS, len(done)) // max(1, len(done))
    each = {
        "ttft_response_s": done.response_ttft_s,
        "ttft_service_s": done.ttft_s,
        "e2e_response_s": done.response_s,
        "e2e_service_s": done.e2e_s,
        "tpot_s": done.tpot_s,
    }
    series = {name: Series(known(values), block_of[~np.isnan(values)]) for name, values in each.items()}
    block_of_gap, told = block_of[done.request_of_gap], done.gap_tokens > 0
    series["itl_s"] = Series(done.gap_s[told] / done.gap_tokens[told], block_of_gap[told])
    series["chunk_gap_s"] = Series(done.gap_s, block_of_gap)
    return series


def measure(series: Series, *, seed: int) -> Measure:
    """Percentiles with block-bootstrap intervals; a tail is withheld where the sample cannot reach it."""
    n = len(series.values)
    if not n:
        return Measure(0, None, tuple(Percentile(q, None, None, least_n(q)) for q in PERCENTILES))
    shown = [q for q in PERCENTILES if n >= least_n(q)]
    draws = percentile_draws(series.values, shown, blocks=series.blocks, seed=seed, resamples=_RESAMPLES)
    intervals = {q: interval_of(draws[:, place]) for place, q in enumerate(shown)}
    return Measure(
        n=n,
        mean=float(series.values.mean()),
        percentiles=tuple(
            Percentile(
                q,
                percentile_of(series.values, q) if q in intervals else None,
                intervals.get(q),
                least_n(q),
            )
            for q in PERCENTILES
        ),
    )


def percentile_of(values: Floats, q: float) -> float:
    """`decant.timing.percentile` of a column: numpy's default is the same interpolation."""
    return float(np.percentile(values, q))


def latency_json(requests: RequestColumns, *, seed: int) -> dict[str, Any]:
    """Every measure as result.json holds it."""
    return {name: measure(series, seed=seed).to_json() for name, series in series_of(requests).items()}


def goodput(requests: RequestColumns, slo: SloConfig, *, span_s: float) -> dict[str, Any] | None:
    """How many of the *offered* requests were answered within the objectives; None without objectives."""
    if not slo.is_set:
        return None
    measured = {
        "ttft_s": requests.response_ttft_s,
        "tpot_s": requests.tpot_s,
        "e2e_s": requests.response_s,
    }
    limits = {name: limit for name, limit in slo.model_dump().items() if limit is not None}
    # Where nothing says how fast it was, the objective is not shown to be kept; but a single token keeps any
    # objective on the tokens after it.
    single = requests.completion_tokens <= 1
    kept = {
        name: requests.ok & np.where(np.isnan(measured[name]), single, measured[name] <= limit)
        for name, limit in limits.items()
    }
    good = int(np.logical_and.reduce(list(kept.values())).sum())
    n = len(requests)
    return {
        "slo": limits,
        "good": good,
        "offered": n,
        "share": good / n if n else None,
        "interval": asdict(wilson(good, n)),
        "per_s": good / span_s if span_s > 0 else None,
        "kept_by_objective": {name: float(each.mean()) if n else None for name, each in kept.items()},
    }


def span_s(requests: RequestColumns) -> float:
    """From the first send to the last answer, or to the last send where no answer came."""
    if not len(requests):
        return 0.0
    last_s = np.max(requests.actual_s + np.nan_to_num(requests.e2e_s))
    return float(last_s - np.min(requests.actual_s))


def throughput(requests: RequestColumns) -> dict[str, float | None]:
    """What came out per second, from the first send to the last answer."""
    whole_s, ok = span_s(requests), requests.ok

    def rate(count: float) -> float | None:
        return float(count) / whole_s if whole_s > 0 else None

    return {
        "span_s": whole_s,
        "requests_per_s": rate(ok.sum()),
        "prompt_tokens_per_s": rate(np.nansum(requests.prompt_tokens[ok])),
        "completion_tokens_per_s": rate(np.nansum(requests.completion_tokens[ok])),
    }


def error_counts(requests: RequestColumns) -> dict[str, dict[str, Any]]:
    """Failures by kind, the most first: how many, and the first one's words."""
    counts = {name: int((requests.kind == place).sum()) for place, name in enumerate(requests.kinds)}
    most_first = sorted((item for item in counts.items() if item[1]), key=lambda item: -item[1])
    return {kind: {"n": n, "example": requests.examples.get(kind)} for kind, n in most_first}
