"""The account of what curation dropped: counts and examples by rule, every dropped line with its reason."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.dataset import BadRow
from decant_distill.curate_rules import Dropped, Rule
from decant_distill.curate_survey import Survey
from decant_distill.labels import Label, read_labels

_IN_REPORT = 3
_ON_PAGE = 40
_EXAMPLE_CHARACTERS = 400
_UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleAccount:
    """What one rule dropped: how many lines, its first ones, and a spread of examples over the whole file."""

    name: str
    what: str
    dropped: int
    first: tuple[dict[str, Any], ...]
    spread: tuple[dict[str, Any], ...]

    def to_report(self) -> dict[str, Any]:
        """The rule's entry in the report."""
        return {
            "name": self.name,
            "what": self.what,
            "dropped": self.dropped,
            "examples": list(self.first),
        }


def account_of(labels: Path, rules: Sequence[Rule], dropped: Dropped, survey: Survey) -> list[RuleAccount]:
    """What each rule dropped, in order; lines that hold no label come first."""
    shown = {rule.name: _spread(list(dropped[rule.name])) for rule in rules}
    wanted = {line: name for name, lines in shown.items() for line in lines}
    examples: dict[int, dict[str, Any]] = {}
    last = max(wanted, default=0)
    for line, label in read_labels(labels):
        if line > last:
            break
        if line in wanted and isinstance(label, Label):
            examples[line] = _example(line, label, dropped[wanted[line]][line])
    return [_unreadable(survey.unreadable), *(_account(rule, dropped, shown, examples) for rule in rules)]


def dropped_lines(dropped: Dropped) -> Iterator[dict[str, Any]]:
    """Every dropped line with its rule and the reason, by rule."""
    for rule, lines in dropped.items():
        for line, reason in lines.items():
            yield {"line": line, "rule": rule, "reason": reason}


def _account(
    rule: Rule, dropped: Dropped, shown: Mapping[str, list[int]], examples: Mapping[int, dict[str, Any]]
) -> RuleAccount:
    lines = shown[rule.name]
    return RuleAccount(
        name=rule.name,
        what=rule.what,
        dropped=len(dropped[rule.name]),
        first=tuple(examples[line] for line in lines[:_IN_REPORT]),
        spread=tuple(examples[line] for line in lines),
    )


def _unreadable(bad: Mapping[int, BadRow]) -> RuleAccount:
    examples = tuple({"line": row.line, "reason": row.reason, "text": row.text} for row in bad.values())
    return RuleAccount(
        name=_UNREADABLE,
        what="the line holds no label",
        dropped=len(bad),
        first=examples[:_IN_REPORT],
        spread=examples[:_ON_PAGE],
    )


def _spread(lines: list[int]) -> list[int]:
    """The first few lines, and others evenly over the rest."""
    first, rest = lines[:_IN_REPORT], lines[_IN_REPORT:]
    count = min(len(rest), _ON_PAGE - _IN_REPORT)
    return first + [rest[number * len(rest) // count] for number in range(count)]


def _example(line: int, label: Label, reason: str) -> dict[str, Any]:
    return {
        "line": line,
        "id": label.id,
        "sample": label.sample,
        "reason": reason,
        "prompt": label.question[:_EXAMPLE_CHARACTERS],
        "response": (label.response or "")[-_EXAMPLE_CHARACTERS:],
        "gold": label.gold,
    }
