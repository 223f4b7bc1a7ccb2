"""Measured minus true, per client and number of streams, and the highest rate at which a client holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from decant.timing import percentile
from decant_bench.scripted_engine import Lateness
from peers.clients import Call, Client
from peers.truth import Truth

_LEAST_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One client at one number of streams: percentiles of what it measured minus the truth, in seconds."""

    client: str
    streams: int
    n: int
    ttft_p50_s: float
    ttft_p99_s: float
    gap_p50_s: float | None
    gap_p99_s: float | None
    mean_gap_p50_s: float
    mean_gap_p99_s: float
    engine: Lateness

    @property
    def errors_s(self) -> tuple[float | None, ...]:
        """The errors in the order of the table's columns."""
        gaps_s = self.gap_p50_s, self.gap_p99_s, self.mean_gap_p50_s, self.mean_gap_p99_s
        return self.ttft_p50_s, self.ttft_p99_s, *gaps_s


@dataclass(frozen=True, slots=True)
class RateStep:
    """One rate that a client was asked to offer; `why_not` is empty where it holds."""

    client: str
    asked: float
    offered: float
    completed: int
    ttft_p99_s: float | None
    why_not: str
    engine: Lateness


def error_row(
    client: Client, streams: int, calls: Sequence[Call], *, truth: Truth, engine: Lateness
) -> ErrorRow:
    """The errors without each stream's first request, which opens its connection."""
    kept = calls[streams:]
    firsts = [call.ttft_s for call in kept]
    gaps = [gap for call in kept for gap in call.gaps_s] if client.has_gaps else []
    means = [sum(call.gaps_s) / len(call.gaps_s) for call in kept]
    return ErrorRow(
        client.name,
        streams,
        len(kept),
        percentile(firsts, 50) - truth.ttft_s,
        percentile(firsts, 99) - truth.ttft_s,
        percentile(gaps, 50) - truth.gap_s if gaps else None,
        percentile(gaps, 99) - truth.gap_s if gaps else None,
        percentile(means, 50) - truth.gap_s,
        percentile(means, 99) - truth.gap_s,
        engine,
    )


def rate_step(
    client: str, asked: float, requests: int, calls: Sequence[Call], *, truth: Truth, engine: Lateness
) -> RateStep:
    """Whether a client held a rate, by one rule for all, applied to their own records.

    All requests completed, 99 % of the rate offered, and the p99 of the time to first token within a tenth of
    the truth.
    """
    bound_s = truth.ttft_s / 10
    span_s = calls[-1].start_s - calls[0].start_s if len(calls) > 1 else 0.0
    offered = (len(calls) - 1) / span_s if span_s > 0 else 0.0
    p99_s = percentile([call.ttft_s for call in calls], 99) - truth.ttft_s if calls else None
    why_not = ""
    if len(calls) < requests:
        why_not = f"{requests - len(calls)} of {requests} requests did not complete"
    elif offered < _LEAST_SHARE * asked:
        why_not = f"offered {offered:.0f}/s"
    elif p99_s is not None and abs(p99_s) > bound_s:
        why_not = f"first token p99 off by {1000 * p99_s:.1f} ms"
    return RateStep(client, asked, offered, len(calls), p99_s, why_not, engine)


def highest_rate(
    probe: Callable[[float], RateStep], *, start: float, growth: float = 2.0, most: float = 20_000.0
) -> tuple[float | None, list[RateStep]]:
    """The highest rate that holds, to about a seventh, and every step; None when nothing held.

    Grows (or shrinks) until one holds and one fails, then closes in between the two.
    """
    steps: list[RateStep] = []
    best: float | None = None
    worst: float | None = None
    rate = start
    while rate <= most and (best is None or worst is None or worst / best > 1.15) and rate > start / 20:
        step = probe(rate)
        steps.append(step)
        if step.why_not:
            worst = rate
        else:
            best = rate
        if worst is None:
            rate *= growth
        else:
            rate = (best * worst) ** 0.5 if best is not None else rate / growth
    return best, steps
