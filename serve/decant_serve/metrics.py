"""Counters and histograms over timing records, in Prometheus' text format."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from decant_serve.shards.join import JoinedStep
from decant_serve.timing_log import TimingRecord

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LABELS: tuple[str, ...] = ("model", "engine", "status")
# Upper bounds in seconds: from a cached token to an answer of minutes.
_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ITL_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 10)

Labels = tuple[str, ...]


class Histogram:
    """One histogram per set of label values; `bounds` are upper bounds, inclusive, below infinity."""

    def __init__(
        self, name: str, help_text: str, bounds: Sequence[float], label_names: Sequence[str] = _LABELS
    ) -> None:
        self._name, self._help, self._bounds, self._names = name, help_text, bounds, label_names
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, labels: Labels, value: float) -> None:
        """Counts one value."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(self._bounds) + 1)
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + value

    def lines(self) -> Iterable[str]:
        """The text format: cumulative buckets, sum and count."""
        yield from _head(self._name, self._help, "histogram")
        for labels, counts in self._counts.items():
            shown: dict[str, str] = dict(zip(self._names, labels, strict=True))
            total = 0
            for bound, count in zip((*self._bounds, "+Inf"), counts, strict=True):
                total += count
                yield _sample(f"{self._name}_bucket", {**shown, "le": str(bound)}, total)
            yield _sample(f"{self._name}_sum", shown, self._sums[labels])
            yield _sample(f"{self._name}_count", shown, total)


class Counter:
    """One number per set of label values that only grows."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        self._name, self._help, self._labels = name, help_text, labels
        self._values: dict[Labels, int] = {}

    def add(self, labels: Labels, amount: int = 1) -> None:
        """Counts."""
        self._values[labels] = self._values.get(labels, 0) + amount

    def lines(self) -> Iterable[str]:
        """The text format."""
        yield from _head(self._name, self._help, "counter")
        for labels, value in self._values.items():
            yield _sample(self._name, dict(zip(self._labels, labels, strict=True)), value)


@dataclass(frozen=True, slots=True)
class Reading:
    """A value as it stands when it is asked for; `kind` is "gauge" or "counter"."""

    name: str
    help_text: str
    kind: str
    values: Sequence[tuple[Mapping[str, str], float]]


class Metrics:
    """What the gateway counts about its requests."""

    def __init__(self) -> None:
        self._queue = Histogram("decant_queue_seconds", "Time in the gateway's queue.", _BOUNDS_S)
        self._ttft = Histogram(
            "decant_ttft_seconds", "From arrival to the first content of a stream.", _BOUNDS_S
        )
        self._itl = Histogram(
            "decant_itl_seconds",
            "Gaps between a stream's chunks, per token, where tokens are known.",
            _ITL_BOUNDS_S,
        )
        self._e2e = Histogram("decant_e2e_seconds", "From arrival to the last content.", _BOUNDS_S)
        self._ranks = Histogram(
            "decant_rank_seconds",
            "What each rank spent computing, waiting and communicating, per engine step.",
            _ITL_BOUNDS_S,
            ("model", "engine", "rank", "kind"),
        )
        self._requests = Counter("decant_requests_total", "Requests that ended.", (*_LABELS, "route"))
        self._tokens = Counter(
            "decant_tokens_total", "Tokens of finished requests.", ("model", "engine", "kind")
        )

    def observe(self, record: TimingRecord) -> None:
        """Counts one finished request."""
        timing = record.timing
        model, engine = record.model or "", record.engine_name or ""
        # A stream that broke was a 200 by then.
        broken = timing.error_kind is not None and timing.status == 200
        status = timing.error_kind or "" if broken else str(timing.status)
        labels = (model, engine, status)
        self._requests.add((*labels, record.route))
        for histogram, value in (
            (self._queue, timing.queue_s),
            (self._ttft, timing.ttft_s),
            (self._e2e, timing.e2e_s),
        ):
            if value is not None:
                histogram.observe(labels, value)
        for gap_s in timing.itl_s:
            self._itl.observe(labels, gap_s)
        counted = {
            "prompt": timing.prompt_tokens,
            "completion": timing.completion_tokens,
            "cached": timing.cached_tokens,
        }
        for kind, tokens in counted.items():
            if tokens is not None:
                self._tokens.add((model, engine, kind), tokens)

    def observe_step(self, model: str, engine: str, step: JoinedStep) -> None:
        """Counts one engine step on each of its ranks."""
        for rank in step.ranks:
            spent = {"compute": rank.compute_s, "wait": rank.wait_s, "comm": rank.comm_s}
            for kind, seconds in spent.items():
                self._ranks.observe((model, engine, str(rank.rank), kind), seconds)

    def render(self, readings: Iterable[Reading]) -> str:
        """The whole page: what was counted, and `readings` of now."""
        lines: list[str] = []
        for family in (
            self._requests,
            self._tokens,
            self._queue,
            self._ttft,
            self._itl,
            self._e2e,
            self._ranks,
        ):
            lines += family.lines()
        for reading in readings:
            lines += _head(reading.name, reading.help_text, reading.kind)
            lines += [_sample(reading.name, labels, value) for labels, value in reading.values]
        return "\n".join(lines) + "\n"


def _head(name: str, help_text: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
