"""What a labeling job shows while it runs, and what a sample of it says of the whole."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from decant.progress import Progress
from decant.store import Label, RequestStore
from decant_distill.key_set import KeySet
from decant_distill.label_pace import Pace
from decant_distill.label_plan import asks_in, plan
from decant_distill.label_requests import Job
from decant_distill.label_spend import Purse


class JobProgress:
    """Labels done, with the tokens of this run, what is paid, and what the rest will cost at this rate."""

    def __init__(self, progress: Progress, *, purse: Purse, pace: Pace, to_ask: int) -> None:
        self._progress = progress
        self._purse = purse
        self._pace = pace
        self._left = to_ask
        self._answered = 0
        self._spent_before_usd = purse.spent_usd
        self._at_once = pace.at_once

    def advance(self, n: int = 1, **extra: object) -> None:
        """Counts `n` more."""
        self._answered += n
        self._left -= n
        shown: dict[str, object] = {"tokens": self._purse.tokens, **extra}
        if self._purse.has_prices:
            spent_usd = self._purse.spent_usd
            each_usd = (spent_usd - self._spent_before_usd) / self._answered
            shown |= {"cost_usd": spent_usd, "projected_usd": spent_usd + self._left * each_usd}
        if self._pace.at_once < self._at_once:
            shown["at_once"] = self._pace.at_once
        self._progress.advance(n, **shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the open requests will take, going by a random sample; a cost comes with its standard error."""

    sampled: int
    open: int
    prompt_tokens: float
    completion_tokens: float
    cost_usd: float | None
    cost_error_usd: float | None
    seconds: float

    def describe(self) -> str:
        """One line for people."""
        cost = ""
        if self.cost_usd is not None:
            error = f" ± {self.cost_error_usd:.2g}" if self.cost_error_usd is not None else ""
            cost = f"${self.cost_usd:.4g}{error} (standard error), "
        return (
            f"{self.open} requests are still open: {cost}{self.prompt_tokens:,.0f} tokens in, "
            f"{self.completion_tokens:,.0f} out, {self.seconds / 60:.1f} minutes; "
            f"going by {self.sampled} answers"
        )


def choose(job: Job, store: RequestStore, count: int) -> frozenset[str]:
    """The keys of `count` open requests, at random and always the same: a key is a hash."""

    seen = KeySet()

    def open_keys() -> Iterator[str]:
        for chunk in plan(job, store.get_many):
            known = store.get_many(ask.key for ask in asks_in(chunk))
            still_open = (key for key, label in known.items() if label.status in ("pending", "leased"))
            yield from filter(seen.add, still_open)

    return frozenset(heapq.nsmallest(count, open_keys()))


def estimate(sample: Sequence[Label], *, still_open: int, wall_s: float) -> Estimate:
    """What `still_open` requests will take, if they are like the answered ones of a sample."""
    costs = [label.cost_usd for label in sample if label.cost_usd is not None]
    known = bool(costs) and len(costs) == len(sample)
    return Estimate(
        sampled=len(sample),
        open=still_open,
        prompt_tokens=still_open * fmean(label.prompt_tokens or 0 for label in sample),
        completion_tokens=still_open * fmean(label.completion_tokens or 0 for label in sample),
        cost_usd=still_open * fmean(costs) if known else None,
        cost_error_usd=still_open * stdev(costs) / sqrt(len(costs)) if known and len(costs) > 1 else None,
        seconds=still_open * wall_s / len(sample),
    )
