"""The label file as a reviewer sees it: filters over what is known of a label; texts stay in the file."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field

from decant.config import Config
from decant.dataset import BadRow, read_rows
from decant.errors import DataError
from decant.reviews import Decision, Review
from decant.task import normal_answer
from decant_distill.labels import Label

State = Literal["unreviewed", "accepted", "edited", "rejected"]
_STATES: Mapping[Decision, State] = {
    "open": "unreviewed",
    "accept": "accepted",
    "edit": "edited",
    "reject": "rejected",
}
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One label without its texts; `share` is the part of its row's samples that gave its answer.

    `rule` is the rule of `decant curate` that dropped it, and `why` its words.
    """

    line: int
    start: int
    id: str
    sample: int
    key: str | None
    status: str
    answer: str | None
    row: tuple[str, int]
    error_class: str | None
    failed_checks: tuple[str, ...]
    confidence: float | None
    hinted: bool
    share: float = 0.0
    disagrees: bool = False
    rule: str | None = None
    why: str | None = None

    @property
    def certainty(self) -> float:
        """The calibrated confidence where the label has one, else the share of the votes."""
        return self.share if self.confidence is None else self.confidence


class Filter(Config):
    """Which labels are shown; what is left out does not matter."""

    state: State | None = Field(default=None, description="what was decided")
    status: Literal["done", "failed"] | None = Field(default=None, description="whether there is an answer")
    rule: str | None = Field(default=None, description="the rule of curation that dropped it")
    error: str | None = Field(default=None, description="its error class")
    check: str | None = Field(default=None, description="a check that it did not pass")
    disagrees: bool = Field(default=False, description="its row's samples gave different answers")
    hinted: bool = Field(default=False, description="the teacher was shown the answer")
    below: float | None = Field(default=None, ge=0, le=1, description="less certain than this")
    text: str = Field(default="", max_length=500, description="stands in prompt, reasoning, answer or id")
    order: Literal["file", "unsure"] = Field(
        default="file", description="the least certain first, or as filed"
    )

    def takes(self, item: Item, state: State) -> bool:
        """Whether an item is shown, its text aside."""
        wanted = (
            (self.state, state),
            (self.status, item.status),
            (self.rule, item.rule),
            (self.error, item.error_class),
        )
        return (
            all(asked is None or asked == found for asked, found in wanted)
            and (self.check is None or self.check in item.failed_checks)
            and (item.disagrees or not self.disagrees)
            and (item.hinted or not self.hinted)
            and (self.below is None or item.certainty < self.below)
        )


@dataclass(slots=True)
class Facets:
    """How many labels each filter would show."""

    state: Counter[str] = field(default_factory=Counter[str])
    status: Counter[str] = field(default_factory=Counter[str])
    rule: Counter[str] = field(default_factory=Counter[str])
    error: Counter[str] = field(default_factory=Counter[str])
    check: Counter[str] = field(default_factory=Counter[str])
    other: Counter[str] = field(default_factory=Counter[str])

    def add(self, item: Item, state: State) -> None:
        """Counts one label."""
        self.state[state] += 1
        self.status[item.status] += 1
        self.rule.update([item.rule] if item.rule else [])
        self.error.update([item.error_class] if item.error_class else [])
        self.check.update(item.failed_checks)
        self.other.update(
            name for name, holds in (("disagrees", item.disagrees), ("hinted", item.hinted)) if holds
        )

    def to_fields(self) -> dict[str, dict[str, int]]:
        """The counts as JSON values."""
        counters = {"state": self.state, "status": self.status, "rule": self.rule}
        counters |= {"error": self.error, "check": self.check, "other": self.other}
        return {name: dict(counter) for name, counter in counters.items()}


class LabelIndex:
    """What a label file holds, by line; texts stay in the file, which must not change meanwhile."""

    def __init__(self, path: Path, items: Iterable[Item]) -> None:
        self.path = path
        self.items = {item.line: item for item in items}
        self._rows: dict[tuple[str, int], list[int]] = defaultdict(list)
        for item in self.items.values():
            self._rows[item.row].append(item.line)
        self._size_bytes = path.stat().st_size

    @classmethod
    def read(cls, path: Path, dropped: Mapping[int, tuple[str, str]] | None = None) -> "LabelIndex":
        """The index of a label file; DataError for one that cannot be read or holds no label."""
        try:
            items = list(_items(path))
        except OSError as error:
            raise DataError(f"{path}: cannot read the labels ({error.strerror or error})") from None
        if not items:
            raise DataError(f"{path}: no line holds a label; give a file that `decant label` wrote")
        return cls(path, _with_votes(items, dropped or {}))

    def label(self, line: int) -> Label:
        """The whole label; DataError for a line that holds none, or when the file was written anew."""
        item = self.items.get(line)
        if item is None:
            raise DataError(f"{self.path}:{line}: no label stands there")
        if self.path.stat().st_size != self._size_bytes:
            raise DataError(f"{self.path} was written anew; start the review again")
        with self.path.open("rb") as file:
            return _read(file, item)

    def row_of(self, line: int) -> list[Item]:
        """All samples of the row that a label belongs to."""
        return [self.items[other] for other in self._rows[self.items[line].row]]

    def find(self, chosen: Filter, decisions: Mapping[str, Review]) -> list[Item]:
        """The items that a filter shows, in its order; a search for text reads the file."""
        found = [item for item in self.items.values() if chosen.takes(item, state_of(item, decisions))]
        if chosen.text.strip():
            found = list(self._with_text(found, chosen.text.strip().casefold()))
        return sorted(found, key=lambda item: item.certainty) if chosen.order == "unsure" else found

    def facets(self, decisions: Mapping[str, Review]) -> Facets:
        """The counts over all labels."""
        counted = Facets()
        for item in self.items.values():
            counted.add(item, state_of(item, decisions))
        return counted

    def _with_text(self, items: Iterable[Item], text: str) -> Iterator[Item]:
        with self.path.open("rb") as file:
            for item in items:
                label = _read(file, item)
                parts = (label.id, label.question, label.reasoning, label.answer, label.error)
                if any(text in part.casefold() for part in parts if part):
                    yield item


def state_of(item: Item, decisions: Mapping[str, Review]) -> State:
    """What was decided on a label."""
    review = decisions.get(item.key or "")
    return "unreviewed" if review is None else _STATES[review.decision]


def read_dropped(path: Path) -> dict[int, tuple[str, str]]:
    """By line of the label file: the rule of curation that dropped it, and why."""
    found: dict[int, tuple[str, str]] = {}
    for row in read_rows(path, required=("line", "rule", "reason")):
        if isinstance(row, BadRow):
            raise DataError(f"{path}:{row.line}: {row.reason}; give the dropped.jsonl of `decant curate`")
        found[int(row.fields["line"])] = (str(row.fields["rule"]), str(row.fields["reason"]))
    return found


def _read(file: IO[bytes], item: Item) -> Label:
    file.seek(item.start)
    return Label.from_fields(json.loads(file.readline()))


def _items(path: Path) -> Iterator[Item]:
    with path.open("rb") as file:
        start = 0
        for line, content in enumerate(file, start=1):
            if (item := _item(line, start, content)) is not None:
                yield item
            start += len(content)


def _item(line: int, start: int, content: bytes) -> Item | None:
    try:
        fields: Any = json.loads(content)
        label = Label.from_fields(fields)
    except (ValueError, RecursionError, AttributeError, TypeError):
        return None
    return Item(
        line=line,
        start=start,
        id=label.id,
        sample=label.sample,
        key=label.key,
        status=label.status,
        answer=None if label.answer is None else label.answer[:_SHOWN_CHARACTERS],
        row=(label.id, label.line),
        error_class=label.error_class,
        failed_checks=tuple(name for name, passed in (label.checks or {}).items() if passed is False),
        confidence=label.confidence,
        hinted=bool(label.hinted),
    )


def _with_votes(items: list[Item], dropped: Mapping[int, tuple[str, str]]) -> Iterator[Item]:
    votes: dict[tuple[str, int], Counter[str | None]] = defaultdict(Counter)
    for item in items:
        if not item.hinted:
            votes[item.row][_spelling(item)] += 1
    for item in items:
        counted = votes[item.row]
        share = counted[_spelling(item)] / max(1, counted.total()) if item.answer is not None else 0.0
        rule, why = dropped.get(item.line, (None, None))
        yield replace(item, share=share, disagrees=len(counted) > 1, rule=rule, why=why)


def _spelling(item: Item) -> str | None:
    return None if item.answer is None else normal_answer(item.answer)
