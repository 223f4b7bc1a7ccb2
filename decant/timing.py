"""The words of latency, defined once, and the one percentile function.

Clock readings (`intended_s`, `actual_s`) are monotonic seconds of one process (`time.perf_counter`); all else
is a duration counted from `actual_s`. Wall time only labels.

- *intended*: when the schedule said to send; *actual*: when the request's bytes left.
- *service* latency counts from actual, *response* latency from intended (it holds the delay before sending).
- `ttfb_s`: to the first byte of the response.
- `ttft_s`: to the first non-empty content, reasoning or tool-call delta.
- `e2e_s`: to the last content; for an empty answer, to the event that ends it.
- `tpot_s`: (e2e - ttft) / (tokens - 1), so it never includes ttft.
- `itl_s`: gap between content chunks divided by the tokens in the later chunk.
- `queue_s`: in the gateway, then in the engine.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, TypedDict


def percentile(values: Iterable[float], q: float) -> float:
    """The `q`-th percentile, `q` in percent (50, 95, 99), by linear interpolation between order statistics.

    This is type 7 of Hyndman and Fan (1996), numpy's default. ValueError for no values, NaN, or a `q` that is
    outside 0..100 or looks like a fraction.
    """
    if not 0 <= q <= 100 or 0 < q < 1:
        raise ValueError(f"q={q}: a percentile is given in percent, 1 to 100 (or 0)")
    ordered = sorted(values)
    if not ordered:
        raise ValueError("a percentile of no values")
    if any(value != value for value in ordered):
        raise ValueError("a percentile of values with a NaN")
    position = (len(ordered) - 1) * q / 100
    below = int(position)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    return low if low == high else low + (high - low) * (position - below)


class Summary(TypedDict):
    """The four numbers that stand for a sample, and its size; all None when it is empty."""

    p50: float | None
    p95: float | None
    p99: float | None
    mean: float | None
    n: int


def summarize(values: Iterable[float]) -> Summary:
    """p50, p95, p99, mean and n of the values."""
    sample = list(values)
    if not sample:
        return {"p50": None, "p95": None, "p99": None, "mean": None, "n": 0}
    return {
        "p50": percentile(sample, 50),
        "p95": percentile(sample, 95),
        "p99": percentile(sample, 99),
        "mean": sum(sample) / len(sample),
        "n": len(sample),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTiming:
    """When one request's things happened, on one process's monotonic clock.

    A failed request has `error_kind`, and None for what it did not reach; `status` is 0 when no response
    came. `chunk_times_s` holds an offset per content chunk; `chunk_tokens` the tokens of each, or () where
    the server does not say.
    """

    request_id: str
    intended_s: float | None = None
    actual_s: float
    ttfb_s: float | None = None
    ttft_s: float | None = None
    e2e_s: float | None = None
    queue_s: float | None = None
    chunk_times_s: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    status: int = 0
    finish_reason: str | None = None
    error_kind: str | None = None
    chunk_tokens: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the whole answer came."""
        return self.error_kind is None

    @property
    def send_delay_s(self) -> float:
        """From intended to actual; 0 where there was no schedule."""
        return 0.0 if self.intended_s is None else self.actual_s - self.intended_s

    @property
    def service_s(self) -> float | None:
        """End-to-end latency from the actual send."""
        return self.e2e_s

    @property
    def response_s(self) -> float | None:
        """End-to-end latency from the intended send; the same as service where there was no schedule."""
        return None if self.e2e_s is None else self.e2e_s + self.send_delay_s

    @property
    def response_ttft_s(self) -> float | None:
        """Time to first token from the intended send."""
        return None if self.ttft_s is None else self.ttft_s + self.send_delay_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None below two tokens or without a stream."""
        if self.e2e_s is None or self.ttft_s is None or self.completion_tokens is None:
            return None
        return (
            (self.e2e_s - self.ttft_s) / (self.completion_tokens - 1) if self.completion_tokens > 1 else None
        )

    @property
    def chunk_gaps_s(self) -> tuple[float, ...]:
        """Seconds between consecutive content chunks."""
        return tuple(b - a for a, b in zip(self.chunk_times_s, self.chunk_times_s[1:], strict=False))

    @property
    def itl_s(self) -> tuple[float, ...]:
        """Each gap divided by the tokens of the chunk that ended it; () when these are not known."""
        if len(self.chunk_tokens) != len(self.chunk_times_s):
            return ()
        return tuple(
            gap / tokens for gap, tokens in zip(self.chunk_gaps_s, self.chunk_tokens[1:], strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; `from_dict` gives an equal timing back."""
        # Not `asdict`, which copies each value deeply: a benchmark writes one of these per request.
        return {
            "request_id": self.request_id,
            "intended_s": self.intended_s,
            "actual_s": self.actual_s,
            "ttfb_s": self.ttfb_s,
            "ttft_s": self.ttft_s,
            "e2e_s": self.e2e_s,
            "queue_s": self.queue_s,
            "chunk_times_s": list(self.chunk_times_s),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
            "status": self.status,
            "finish_reason": self.finish_reason,
            "error_kind": self.error_kind,
            "chunk_tokens": list(self.chunk_tokens),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The timing that `to_dict` wrote; other keys are ignored, for a record may carry more."""
        known = {name: values[name] for name in (field.name for field in fields(cls)) if name in values}
        known["chunk_times_s"] = tuple(known.get("chunk_times_s", ()))
        known["chunk_tokens"] = tuple(known.get("chunk_tokens", ()))
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTiming:
    """One tensor-parallel rank's share of a step, or of several.

    `comm_s` is what the fastest rank spent in the collectives, `wait_s` the rest of this rank's time in them,
    `held_up_s` how long this rank made the one that waited longest wait for it.
    """

    rank: int
    compute_s: float
    wait_s: float
    comm_s: float
    held_up_s: float = 0.0

    @property
    def forward_s(self) -> float:
        """compute + wait + comm."""
        return self.compute_s + self.wait_s + self.comm_s
