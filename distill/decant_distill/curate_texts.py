"""Texts of the labels that are left, read again for the rules that have to see them together."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from decant_distill.curate_rules import Candidate
from decant_distill.curate_survey import Survey
from decant_distill.labels import Label
from decant_distill.reviewed import read_reviewed


@dataclass(frozen=True, slots=True)
class Texts:
    """Reads the labels of some lines, as they stand after their review, in file order."""

    labels: Path
    survey: Survey

    def of(self, lines: Collection[int]) -> Iterator[tuple[int, Label]]:
        """The labels of these lines."""
        wanted = frozenset(lines)
        last = max(wanted, default=0)
        for line, label in read_reviewed(self.labels, self.survey.reviews):
            if line > last:
                return
            if line in wanted and isinstance(label, Label):
                yield line, label


def written(label: Label) -> str:
    """What the teacher wrote: reasoning and answer."""
    return f"{label.reasoning}\n{label.answer}" if label.reasoning else label.answer or ""


def folds(candidates: Sequence[Candidate], count: int, *, seed: int) -> dict[int, int]:
    """A fold for each line; all labels of one prompt share theirs, so that no fold tells on another."""
    return {one.line: _drawn(one.question or b"", seed) % count for one in candidates}


def _drawn(name: bytes, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}".encode() + name, digest_size=8).digest())
