"""The requests of a run as columns of numbers: what a hundred thousand of them take is a few megabytes."""

from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from decant.timing import RequestTiming
from decant_bench.records import NEVER_SENT, REQUESTS_FILE, Record, read_records
from decant_bench.tokens import TokenCounter

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_NAMES = (
    *("intended_s", "actual_s", "ttft_s", "e2e_s", "prompt_tokens", "completion_tokens"),
    *("planned_prompt_tokens", "schedule_error_s", "recount"),
)


@dataclass(frozen=True, slots=True)
class RequestColumns:
    """Offered requests in order of sending, (n,) each; NaN where a number is not known.

    `kind` is a place in `kinds`, -1 for a completed request; `examples` has the first one's words by kind.
    The gaps between chunks stand one after the other in `gap_s`, `gaps` of them per request; `gap_tokens` are
    the tokens that ended each, 0 where that is not known. `recount` is the server's count of an answer's
    tokens minus the tokenizer's.
    """

    intended_s: Floats
    actual_s: Floats
    ttft_s: Floats
    e2e_s: Floats
    prompt_tokens: Floats
    completion_tokens: Floats
    planned_prompt_tokens: Floats
    schedule_error_s: Floats
    recount: Floats
    kind: Counts
    gaps: Counts
    gap_s: Floats
    gap_tokens: npt.NDArray[np.int32]
    kinds: tuple[str, ...]
    examples: Mapping[str, str]

    @classmethod
    def of(cls, records: Iterable[Record], *, count: Callable[[str], int] | None = None) -> Self:
        """The columns of records in any order, each looked at once; `count` recounts the kept texts."""
        reading = _Reading(count)
        for record in records:
            reading.take(record)
        order = np.argsort(np.asarray(reading.columns["actual_s"]), kind="stable")
        whole = cls(
            **{name: np.asarray(values) for name, values in reading.columns.items()},
            kind=np.asarray(reading.kind, dtype=np.int64),
            gaps=np.asarray(reading.gaps, dtype=np.int64),
            gap_s=np.asarray(reading.gap_s),
            gap_tokens=np.asarray(reading.gap_tokens, dtype=np.int32),
            kinds=tuple(reading.kinds),
            examples={kind: words for kind, (_, words) in reading.examples.items()},
        )
        return whole.pick(order)

    @classmethod
    def of_timings(cls, timings: Iterable[RequestTiming]) -> Self:
        """The columns of timings alone."""
        return cls.of(Record(index=n, turn=0, timing=timing) for n, timing in enumerate(timings))

    def __len__(self) -> int:
        return len(self.actual_s)

    def pick(self, places: "Counts | npt.NDArray[np.bool_]") -> Self:
        """The requests at these places, or where a mask is true, with their gaps."""
        chosen = np.flatnonzero(places) if places.dtype == np.bool_ else places
        ends = np.cumsum(self.gaps)
        sizes = self.gaps[chosen]
        shift = np.repeat((ends - self.gaps)[chosen] - (np.cumsum(sizes) - sizes), sizes)
        gap_places = np.arange(len(shift)) + shift
        return replace(
            self,
            intended_s=self.intended_s[chosen],
            actual_s=self.actual_s[chosen],
            ttft_s=self.ttft_s[chosen],
            e2e_s=self.e2e_s[chosen],
            prompt_tokens=self.prompt_tokens[chosen],
            completion_tokens=self.completion_tokens[chosen],
            planned_prompt_tokens=self.planned_prompt_tokens[chosen],
            schedule_error_s=self.schedule_error_s[chosen],
            recount=self.recount[chosen],
            kind=self.kind[chosen],
            gaps=sizes,
            gap_s=self.gap_s[gap_places],
            gap_tokens=self.gap_tokens[gap_places],
        )

    @property
    def ok(self) -> npt.NDArray[np.bool_]:
        """Which were answered whole."""
        return self.kind < 0

    @property
    def was_sent(self) -> npt.NDArray[np.bool_]:
        """Which ever left."""
        unsent = [place for place, name in enumerate(self.kinds) if name in NEVER_SENT]
        return ~np.isin(self.kind, unsent)

    @property
    def send_delay_s(self) -> Floats:
        """From intended to actual; 0 where there was no schedule."""
        return np.where(np.isnan(self.intended_s), 0.0, self.actual_s - self.intended_s)

    @property
    def response_ttft_s(self) -> Floats:
        """Time to first token from the intended send."""
        return self.ttft_s + self.send_delay_s

    @property
    def response_s(self) -> Floats:
        """End-to-end latency from the intended send."""
        return self.e2e_s + self.send_delay_s

    @property
    def tpot_s(self) -> Floats:
        """Seconds per output token after the first; NaN below two tokens."""
        further = np.where(self.completion_tokens > 1, self.completion_tokens - 1, np.nan)
        return (self.e2e_s - self.ttft_s) / further

    @property
    def request_of_gap(self) -> Counts:
        """Which request each gap belongs to."""
        return np.repeat(np.arange(len(self)), self.gaps)


def known(values: Floats) -> Floats:
    """Those that are not NaN."""
    return values[~np.isnan(values)]


def gap_tokens_of(timing: RequestTiming) -> list[int]:
    """The tokens that ended each gap: as the server tells, or one where there is a chunk for each token."""
    gaps = max(0, len(timing.chunk_times_s) - 1)
    if len(timing.chunk_tokens) == len(timing.chunk_times_s):
        return list(timing.chunk_tokens[1:])
    return [int(timing.completion_tokens == len(timing.chunk_times_s))] * gaps


def read_columns(folder: Path, counter: TokenCounter | None = None) -> RequestColumns:
    """The columns of a result folder's requests; a counter of tokens recounts the texts that were kept."""
    count = counter.count if counter is not None and counter.unit == "tokens" else None
    return RequestColumns.of(read_records(folder / REQUESTS_FILE), count=count)


class _Reading:
    """Columns that grow; of what is no number only the kinds of failure and their first words are kept."""

    def __init__(self, count: Callable[[str], int] | None) -> None:
        self.columns = {name: array("d") for name in _NAMES}
        self.kind, self.gaps, self.gap_tokens = array("q"), array("q"), array("i")
        self.gap_s = array("d")
        self.kinds: dict[str, int] = {}
        self.examples: dict[str, tuple[float, str]] = {}
        self._count = count

    def take(self, record: Record) -> None:
        timing, columns = record.timing, self.columns
        values = (
            *(timing.intended_s, timing.actual_s, timing.ttft_s, timing.e2e_s),
            *(timing.prompt_tokens, timing.completion_tokens),
            *(record.planned_prompt_tokens, record.schedule_error_s, self._recount(record)),
        )
        for name, value in zip(_NAMES, values, strict=True):
            columns[name].append(np.nan if value is None else value)
        self.kind.append(-1 if timing.error_kind is None else self._failed(timing.error_kind, record))
        gaps_s = timing.chunk_gaps_s
        self.gaps.append(len(gaps_s))
        self.gap_s.extend(gaps_s)
        self.gap_tokens.extend(gap_tokens_of(timing))

    def _recount(self, record: Record) -> int | None:
        told = record.timing.completion_tokens
        if self._count is None or record.text is None or told is None or not record.timing.ok:
            return None
        return told - self._count(record.text)

    def _failed(self, kind: str, record: Record) -> int:
        at_s = record.timing.actual_s
        if record.error and (kind not in self.examples or at_s < self.examples[kind][0]):
            self.examples[kind] = at_s, record.error
        return self.kinds.setdefault(kind, len(self.kinds))
