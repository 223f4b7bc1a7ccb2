"""The training rows that curation writes, and the part of them that is held out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from decant.files import write_jsonl
from decant.task import compose
from decant_distill.curate_rules import Candidate, Tally
from decant_distill.curate_split import Member, held_out
from decant_distill.curate_survey import Survey
from decant_distill.labels import Label
from decant_distill.redact import Redaction
from decant_distill.reviewed import read_reviewed

_NO_VOTES = Tally(1, {})


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows go, and what is done to them on the way."""

    labels: Path
    output: Path
    validation: Path | None
    validation_share: float
    by_group: bool
    seed: int
    redact: Redaction | None
    answer_marker: str


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: rows per file, and what was taken out of them by kind, if anything was to be."""

    train: int
    validation: int | None
    redacted: dict[str, int] | None

    def to_report(self) -> dict[str, Any]:
        """The fields of the report."""
        split = (
            {} if self.validation is None else {"split": {"train": self.train, "validation": self.validation}}
        )
        return {**split, **({} if self.redacted is None else {"redacted": self.redacted})}


def write_rows(layout: Layout, survey: Survey, kept: Sequence[int]) -> Written:
    """Writes the rows that are left, in the order of the label file."""
    apart = _held_out(layout, survey, kept) if layout.validation is not None else frozenset[int]()
    counts: Counter[str] = Counter()
    train = write_jsonl(layout.output, _training_rows(layout, survey, frozenset(kept) - apart, counts))
    validation = None
    if layout.validation is not None:
        validation = write_jsonl(layout.validation, _training_rows(layout, survey, apart, counts))
    return Written(train, validation, dict(counts) if layout.redact else None)


def _held_out(layout: Layout, survey: Survey, kept: Sequence[int]) -> frozenset[int]:
    """The lines for validation. Equal prompts stay together even when their rows name different groups."""
    wanted = frozenset(kept)
    homes: dict[bytes, str] = {}
    members: list[Member] = []
    for line, label in read_reviewed(layout.labels, survey.reviews):
        if line not in wanted or not isinstance(label, Label):
            continue
        question = survey.candidates[line].question or b""
        own = f"group {label.group}" if layout.by_group and label.group is not None else question.hex()
        members.append(Member(line, homes.setdefault(question, own), label.answer or ""))
    return held_out(members, share=layout.validation_share, seed=layout.seed)


def _training_rows(
    layout: Layout, survey: Survey, kept: frozenset[int], counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    for line, label in read_reviewed(layout.labels, survey.reviews):
        if line in kept and isinstance(label, Label):
            clean = _redacted(label, layout.redact, counts) if layout.redact else label
            yield _training_row(layout.answer_marker, clean, survey.candidates[line], survey.tallies)


def _redacted(label: Label, redaction: Redaction, counts: Counter[str]) -> Label:
    placeholders = redaction.placeholders()
    prompt = [
        {**message, "content": placeholders.redact(message["content"])} for message in label.prompt or []
    ]
    reasoning = placeholders.redact(label.reasoning) if label.reasoning is not None else None
    clean = replace(label, prompt=prompt, reasoning=reasoning, answer=placeholders.redact(label.answer or ""))
    counts.update(placeholders.counts)
    return clean


def _training_row(
    marker: str, label: Label, candidate: Candidate, tallies: Mapping[bytes, Tally]
) -> dict[str, Any]:
    assert candidate.prompt is not None
    assert candidate.answer is not None
    assert label.answer is not None
    tally = tallies.get(candidate.prompt, _NO_VOTES)
    content = compose(label.reasoning, label.answer, marker=marker, placement="rationale_then_answer")
    reviewed = candidate.decision if candidate.is_accepted else None
    optional = {"group": label.group, "length": label.length, "reviewed": reviewed}
    optional |= {"hinted": label.hinted or None, "confidence": label.confidence}
    return {
        "id": label.id,
        "sample": label.sample,
        "prompt": label.prompt,
        "completion": [{"role": "assistant", "content": content}],
        "reasoning": label.reasoning,
        "answer": label.answer,
        "label_key": label.key,
        "votes": tally.votes[candidate.answer],
        "vote_share": tally.share(candidate.answer),
        **{name: value for name, value in optional.items() if value is not None},
    }
