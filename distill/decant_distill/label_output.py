"""The label file and its summary, read back from the store in dataset order: rows out = rows in x samples."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from decant import store
from decant.errors import DataError
from decant.task import normal_answer
from decant_distill.key_set import KeySet
from decant_distill.label_hint import without_hint
from decant_distill.label_judge import Judge
from decant_distill.label_plan import Planned, asks_in, plan
from decant_distill.label_requests import Ask, Job, Unaskable
from decant_distill.label_votes import count_votes
from decant_distill.labels import BAD_ROW, Label
from decant_distill.verifiers import Statement, Verifier, verdicts

Rate = Callable[[list[Label]], list[Label]]
"""Adds the calibrated confidence to the labels of one row."""


class Tally:
    """Counts what went into the label file; a request that stands under several rows is paid once."""

    def __init__(self) -> None:
        self.rows = 0
        self.done = 0
        self.by_error: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cost_usd: float | None = None
        self.checks: dict[str, Counter[str]] = {}
        self.redacted: Counter[str] = Counter()
        self.hinted: Counter[str] = Counter()
        self.without_logprob = 0
        self._seen = KeySet()

    def add(self, label: Label) -> None:
        """Counts one line."""
        self.rows += 1
        if label.status == "done":
            self.done += 1
        else:
            self.by_error[label.error_class or "unknown"] += 1
        if label.hinted:
            self.hinted["kept" if label.status == "done" else label.error_class or "unknown"] += 1
        self.without_logprob += label.status == "done" and label.logprob is None
        for name, passed in (label.checks or {}).items():
            outcome = "not_applicable" if passed is None else "passed" if passed else "failed"
            self.checks.setdefault(name, Counter())[outcome] += 1
        if label.key is None or not self._seen.add(label.key):
            return
        self.redacted.update(label.redacted or {})
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
            **(
                {"checks": {name: dict(counts) for name, counts in self.checks.items()}}
                if self.checks
                else {}
            ),
            **({"redacted": dict(self.redacted)} if self.redacted else {}),
            **({"hinted": dict(self.hinted)} if self.hinted else {}),
        }


class Reader:
    """Reads a job's labels back, with what the verifiers, the judge and the calibration say of them."""

    def __init__(
        self,
        job: Job,
        verifiers: Mapping[str, Verifier],
        *,
        drop_gold: bool,
        judge: Judge | None = None,
        rate: Rate | None = None,
    ) -> None:
        self._job = job
        self._judge = judge
        self._rate = rate
        self._verifiers = verifiers
        self._drop_gold = drop_gold
        self._template = job.template

    def read_back(self, requests: store.RequestStore, *, tally: Tally) -> Iterator[dict[str, Any]]:
        """Every row and sample of the dataset as a line of the label file."""
        for labels in self.rows(requests):
            for label in labels:
                tally.add(label)
                yield label.to_fields()

    def rows(self, requests: store.RequestStore) -> Iterator[list[Label]]:
        """The labels of each row of the dataset."""
        for chunk in plan(self._job, requests.get_many):
            known = requests.get_many(ask.key for ask in asks_in(chunk))
            rows = [self._labels(planned, known) for planned in chunk]
            if self._judge is not None:
                marks = self._judge.marks([label for labels in rows for label in labels], requests)
                rows = [[self._marked(label, marks) for label in labels] for labels in rows]
            yield from rows if self._rate is None else map(self._rate, rows)

    def _marked(self, label: Label, marks: Mapping[str, float]) -> Label:
        assert self._judge is not None
        if label.answer is None:
            return label
        mark = marks.get(label.key or "")
        passed = None if mark is None else mark >= self._judge.config.least
        return replace(label, judge=mark, checks={**(label.checks or {}), "judge": passed})

    def _labels(self, planned: Planned, known: Mapping[str, store.Label]) -> list[Label]:
        if isinstance(planned.row, Unaskable):
            samples = range(self._job.sampling.samples)
            return [_unasked(planned.row, sample, self._job) for sample in samples]
        labels = [self._label(ask, known) for ask in planned.asks]
        return _with_votes(labels) if self._job.sampling.max_samples is not None else labels

    def _label(self, ask: Ask, known: Mapping[str, store.Label]) -> Label:
        job, question, stored = self._job, ask.question, known.get(ask.key)
        if stored is None or stored.status in ("pending", "leased"):
            raise DataError(f"{job.data}: line {question.line} changed while it was labeled; run again")
        # Read anew from the response: a marker that was corrected since then needs no new answer.
        reading = job.read(stored.response, stored.finish_reason) if stored.response is not None else None
        if ask.hinted and reading is not None:
            reading = without_hint(reading, gold=question.gold or "", asked=question.messages[-1]["content"])
        label = Label(
            id=question.row_id,
            line=question.line,
            sample=ask.sample,
            key=ask.key,
            prompt=question.messages,
            status="done" if reading and reading.error_class is None else "failed",
            teacher=job.teacher.model,
            gold=None if self._drop_gold else question.gold,
            group=question.group,
            length=question.length,
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
            template=self._template,
            redacted=question.redacted,
            hinted=ask.hinted or None,
            logprob=stored.logprob,
        )
        return self._verified(label, question.gold)

    def _verified(self, label: Label, gold: str | None) -> Label:
        if not self._verifiers or label.answer is None:
            return label
        statement = Statement(
            question=label.question, reasoning=label.reasoning, answer=label.answer, gold=gold
        )
        found = verdicts(self._verifiers, statement)
        notes = {name: verdict.why for name, verdict in found.items() if verdict.passed is False}
        checks = {name: verdict.passed for name, verdict in found.items()}
        # Why an answer is not gold would say what gold is.
        return replace(label, checks=checks, check_notes=None if self._drop_gold else notes or None)


def _with_votes(labels: list[Label]) -> list[Label]:
    votes = count_votes(label.answer for label in labels if not label.hinted)
    drawn = sum(not label.hinted for label in labels)
    return [
        replace(label, drawn=drawn)
        if label.answer is None or label.hinted
        else replace(
            label, drawn=drawn, votes=(n := votes[normal_answer(label.answer)]), vote_share=n / drawn
        )
        for label in labels
    ]


def _unasked(row: Unaskable, sample: int, job: Job) -> Label:
    return Label(
        id=row.row_id,
        line=row.line,
        sample=sample,
        key=None,
        prompt=None,
        status="failed",
        teacher=job.teacher.model,
        error_class=BAD_ROW,
        error=row.reason,
    )
