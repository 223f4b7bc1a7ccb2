"""The label file and its summary, read back from the store in dataset order: rows out = rows in x samples."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from decant import store
from decant.errors import DataError
from decant_distill.label_requests import Ask, Job, Unaskable
from decant_distill.labels import BAD_ROW, Label, read_response

_CHUNK = 500


class Tally:
    """Counts what went into the label file; a request that stands under several rows is paid once."""

    def __init__(self) -> None:
        self.rows = 0
        self.done = 0
        self.by_error: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cost_usd: float | None = None
        self._seen: set[bytes] = set()

    def add(self, label: Label) -> None:
        """Counts one line."""
        self.rows += 1
        if label.status == "done":
            self.done += 1
        else:
            self.by_error[label.error_class or "unknown"] += 1
        if label.key is None or (key := bytes.fromhex(label.key)) in self._seen:
            return
        self._seen.add(key)
        self.prompt_tokens += label.prompt_tokens or 0
        self.completion_tokens += label.completion_tokens or 0
        if label.cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + label.cost_usd

    def to_summary(self) -> dict[str, Any]:
        """The counts as JSON values; `cost_usd` is null when nothing had a price."""
        return {
            "rows": self.rows,
            "done": self.done,
            "failed": self.rows - self.done,
            "by_error": dict(self.by_error.most_common()),
            "tokens": {"prompt": self.prompt_tokens, "completion": self.completion_tokens},
            "cost_usd": self.cost_usd,
        }


def read_back(
    job: Job, requests: store.RequestStore, *, drop_gold: bool, tally: Tally
) -> Iterator[dict[str, Any]]:
    """Every row and sample of the dataset as a line of the label file."""
    items = iter(job)
    while chunk := list(islice(items, _CHUNK)):
        known = requests.get_many(item.key for item in chunk if isinstance(item, Ask))
        for item in chunk:
            label = (
                _unasked(item, job) if isinstance(item, Unaskable) else _label(item, known, job, drop_gold)
            )
            tally.add(label)
            yield label.to_fields()


def _unasked(item: Unaskable, job: Job) -> Label:
    return Label(
        id=item.row_id,
        line=item.line,
        sample=item.sample,
        key=None,
        prompt=None,
        status="failed",
        teacher=job.teacher.model,
        error_class=BAD_ROW,
        error=item.reason,
    )


def _label(ask: Ask, known: dict[str, store.Label], job: Job, drop_gold: bool) -> Label:
    stored = known.get(ask.key)
    if stored is None or stored.status in ("pending", "leased"):
        raise DataError(f"{job.data}: line {ask.line} changed while it was labeled; run again")
    # Read anew from the response: a marker that was corrected since then needs no new answer.
    reading = (
        read_response(stored.response, stored.finish_reason, job.task)
        if stored.response is not None
        else None
    )
    return Label(
        id=ask.row_id,
        line=ask.line,
        sample=ask.sample,
        key=ask.key,
        prompt=ask.messages,
        status="done" if reading and reading.error_class is None else "failed",
        teacher=job.teacher.model,
        gold=None if drop_gold else ask.gold,
        group=ask.group,
        length=ask.length,
        response=stored.response,
        reasoning=reading.reasoning if reading else None,
        answer=reading.answer if reading else None,
        finish_reason=stored.finish_reason,
        prompt_tokens=stored.prompt_tokens,
        completion_tokens=stored.completion_tokens,
        cost_usd=stored.cost_usd,
        latency_s=stored.latency_s,
        error_class=reading.error_class if reading else stored.error_class,
        error=reading.error if reading else stored.error,
    )
