"""What review decisions make of labels: an edit is a label of its own, and where the decisions are kept."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from decant.config import Role
from decant.dataset import BadRow
from decant.errors import DataError
from decant.reviews import Review, latest, read_reviews
from decant.store import RequestStore
from decant_distill.labels import Label, read_labels


def _place(value: object) -> object:
    return Path(value) if isinstance(value, str) and "://" not in value else value


# A path is hashed as a stage's input, so that a recipe curates anew after a review; a URL cannot be.
OptionalStore = Annotated[Path | str | None, BeforeValidator(_place), Role("input")]


def after_review(label: Label, review: Review | None) -> Label:
    """The label as it stands after a decision; an edited one is done, whatever the teacher's answer was."""
    if review is None or review.decision != "edit":
        return label
    return replace(
        label,
        key=review.key,
        status="done",
        reasoning=review.reasoning,
        answer=review.answer,
        error_class=None,
        error=None,
        checks=None,
        check_notes=None,
    )


def store_beside(labels: Path) -> Path:
    """Where `decant label` puts the store of a label file unless it is told otherwise."""
    return labels.with_suffix(".store.sqlite")


def read_decisions(labels: Path, where: Path | str | None) -> Mapping[str, Review]:
    """The decisions on a label file, by key; without `where`, of the store beside it, if there is one.

    DataError for a store that is named and not there.
    """
    if where is None:
        where = store_beside(labels)
        if not where.exists():
            return {}
    elif isinstance(where, Path) and not where.exists():
        raise DataError(f"{where}: no such store; give the one that `decant review` wrote to")
    keys = (label.key for _, label in read_labels(labels) if isinstance(label, Label) and label.key)
    with RequestStore.open(where) as requests:
        return latest(read_reviews(requests, keys))


def read_reviewed(labels: Path, decisions: Mapping[str, Review]) -> Iterator[tuple[int, Label | BadRow]]:
    """The labels of a file with their line numbers, each as it stands after its review."""
    for line, label in read_labels(labels):
        is_label = isinstance(label, Label)
        yield line, after_review(label, decisions.get(label.key or "")) if is_label else label
