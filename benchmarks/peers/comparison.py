"""Measured minus true, per client and number of streams, and the highest rate at which a client holds.

True is what the engine stamped: when the kernel got the request and when each token left. What the engine was
late itself is in both, so a busy machine does not fall on the client that was measured meanwhile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from decant.timing import percentile
from decant_bench.scripted_engine import Lateness, SentAnswer, lateness_of
from peers.clients import Call, Client, PeerError

_LEAST_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One client at one number of streams: percentiles measured minus the true ones, in seconds."""

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


def error_row(client: Client, streams: int, calls: Sequence[Call], sent: Sequence[SentAnswer]) -> ErrorRow:
    """The errors without each stream's first request, which opens its connection."""
    # A client may send requests of its own before the load, never after it.
    kept, true = calls[streams:], sent[-len(calls) :][streams:]
    if not kept or not true:
        raise PeerError(f"{client.name}: {len(calls)} requests of {streams} streams completed: too few")
    own_gaps = [gap for call in kept for gap in call.gaps_s] if client.has_gaps else []
    true_gaps = [gap for answer in true for gap in answer.gaps_s]
    firsts = [call.ttft_s for call in kept], [answer.ttft_s for answer in true]
    means = [_mean(call.gaps_s) for call in kept], [_mean(answer.gaps_s) for answer in true]
    return ErrorRow(
        client.name,
        streams,
        len(kept),
        _error(50, *firsts),
        _error(99, *firsts),
        _error(50, own_gaps, true_gaps) if own_gaps else None,
        _error(99, own_gaps, true_gaps) if own_gaps else None,
        _error(50, *means),
        _error(99, *means),
        lateness_of(true),
    )


def rate_step(
    client: str,
    asked: float,
    requests: int,
    calls: Sequence[Call],
    *,
    sent: Sequence[SentAnswer],
    bound_s: float,
) -> RateStep:
    """Whether a client held a rate, by one rule for all, applied to their own records.

    All requests completed, 99 % of the rate offered, and the p99 of the time to first token within `bound_s`
    of the true one.
    """
    true = sent[-requests:]
    span_s = calls[-1].start_s - calls[0].start_s if len(calls) > 1 else 0.0
    offered = (len(calls) - 1) / span_s if span_s > 0 else 0.0
    p99_s = (
        _error(99, [call.ttft_s for call in calls], [each.ttft_s for each in true])
        if calls and true
        else None
    )
    why_not = ""
    if len(calls) < requests:
        why_not = f"{requests - len(calls)} of {requests} requests did not complete"
    elif offered < _LEAST_SHARE * asked:
        why_not = f"offered {offered:.0f}/s"
    elif p99_s is not None and abs(p99_s) > bound_s:
        why_not = f"first token p99 off by {1000 * p99_s:.1f} ms"
    return RateStep(client, asked, offered, len(calls), p99_s, why_not, lateness_of(true))


def highest_rate(
    probe: Callable[[float], RateStep],
    *,
    start: float,
    may_go_on: Callable[[], bool] = lambda: True,
    growth: float = 2.0,
    most: float = 20_000.0,
) -> tuple[float | None, list[RateStep]]:
    """The highest rate that held, to about a tenth, and every step; None when nothing held.

    Grows (or shrinks) until one holds and one fails, then closes in between the two while it may go on.
    """
    steps: list[RateStep] = []
    best: float | None = None
    worst: float | None = None
    rate = start
    while rate <= most and rate > start / 20 and (best is None or worst is None or worst / best > 1.1):
        if steps and not may_go_on():
            break
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


def _error(q: float, own_s: Sequence[float], true_s: Sequence[float]) -> float:
    return percentile(own_s, q) - percentile(true_s, q)


def _mean(values_s: Sequence[float]) -> float:
    return sum(values_s) / len(values_s)
