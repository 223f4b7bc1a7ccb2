"""What people decided on single labels: versions in the request store, none of them ever overwritten."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from decant import store
from decant.errors import StoreError
from decant.store import Answer, NewLabel, RequestStore
from decant.wire import canonical_json

Decision = Literal["accept", "edit", "reject", "open"]

# Marks a store row that is a version of a label and not a teacher's answer to a request.
REVIEW = "review"
_KEYS_AT_ONCE = 500
# Most labels have none, and one more says that there is no second.
_VERSIONS_AT_ONCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One version of the label `of`: what was decided, by whom, and for an edit the new text.

    `open` takes an earlier decision back. Versions of one label count from 1.
    """

    of: str
    version: int
    decision: Decision
    by: str = ""
    note: str = ""
    reasoning: str | None = None
    answer: str | None = None
    at: float = 0.0

    @property
    def key(self) -> str:
        """Its key in the store: made from label and number, so that no version is written twice."""
        return _version_key(self.of, self.version)


def add_review(requests: RequestStore, review: Review, *, row_id: str, sample: int, asked: Any) -> Review:
    """Puts a version into the store, beside the messages that were asked.

    StoreError when somebody else put that version there first. No look-up finds it: it asks nothing.
    """
    about = {"of": review.of, "version": review.version, "decision": review.decision}
    said = {**about, "by": review.by, "note": review.note, "at": review.at}
    request = {"messages": asked, REVIEW: said}
    row = NewLabel(key=review.key, row_id=row_id, sample=sample, request=request, prompt_version=REVIEW)
    if requests.add([row]) == 0:
        raise StoreError(f"label {review.of[:12]} was reviewed by somebody else meanwhile; look at it again")
    text = "\n".join(part for part in (review.reasoning, review.answer) if part)
    requests.finish(
        review.key,
        Answer(response=text, reasoning=review.reasoning, answer=review.answer, finish_reason=REVIEW),
    )
    return review


def read_reviews(requests: RequestStore, keys: Iterable[str]) -> dict[str, list[Review]]:
    """All versions of those labels that have any, oldest first."""
    found: dict[str, list[Review]] = {}
    for chunk in _chunks(keys):
        first, asked = 1, chunk
        while asked:
            by_key = _version_keys(asked, first)
            _add(found, by_key, requests.get_many(by_key))
            first += _VERSIONS_AT_ONCE
            asked = [of for of in asked if of in found and found[of][-1].version == first - 1]
    return found


def reviewed_answers(
    requests: RequestStore, ask: str, *, max_age_s: float | None = None
) -> tuple[list[store.Label], dict[str, Review]]:
    """The answers to a question (`RequestStore.answers_to`), with the decision on each that has one."""
    by_key: dict[str, str] = {}

    def first_versions(labels: list[store.Label]) -> dict[str, str]:
        by_key.update(_version_keys((label.key for label in labels), 1))
        return by_key

    labels, rows = requests.answers_with(ask, first_versions, max_age_s=max_age_s)
    found: dict[str, list[Review]] = {}
    _add(found, by_key, rows)
    more = [of for of, reviews in found.items() if reviews[-1].version == _VERSIONS_AT_ONCE]
    return labels, latest(found | (read_reviews(requests, more) if more else {}))


def latest(versions: Mapping[str, Sequence[Review]]) -> dict[str, Review]:
    """The decision that holds for each label, where one does."""
    last = {of: reviews[-1] for of, reviews in versions.items() if reviews}
    return {of: review for of, review in last.items() if review.decision != "open"}


def _version_keys(of: Iterable[str], first: int) -> dict[str, str]:
    """The keys of some versions of each label, in their order, with the label's."""
    numbers = range(first, first + _VERSIONS_AT_ONCE)
    return {_version_key(key, number): key for key in of for number in numbers}


def _add(found: dict[str, list[Review]], by_key: Mapping[str, str], rows: Mapping[str, store.Label]) -> None:
    for key, of in by_key.items():
        if key in rows:
            found.setdefault(of, []).append(_review(rows[key]))


def _review(row: store.Label) -> Review:
    about = row.request[REVIEW]
    return Review(
        of=about["of"],
        version=about["version"],
        # A version that was never finished, for the process died between two writes, decides nothing.
        decision=about["decision"] if row.status == "done" else "open",
        by=about["by"],
        note=about["note"],
        reasoning=row.reasoning,
        answer=row.answer,
        at=about["at"],
    )


def _version_key(of: str, version: int) -> str:
    return hashlib.sha256(canonical_json([REVIEW, of, version])).hexdigest()


def _chunks(keys: Iterable[str]) -> Iterator[list[str]]:
    left = iter(dict.fromkeys(keys))
    while chunk := list(islice(left, _KEYS_AT_ONCE)):
        yield chunk
