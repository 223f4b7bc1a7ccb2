"""One reading of the label file: what the rules of curation need of each label, and no text."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from decant.dataset import BadRow
from decant.reviews import Decision, Review
from decant.task import same_answer
from decant.wire import canonical_json
from decant_distill.curate_contamination import Contamination
from decant_distill.curate_rules import Candidate, Tally, tally_votes
from decant_distill.curate_text import TextRule
from decant_distill.labels import Label, read_labels
from decant_distill.minhash import MinHasher, NearDuplicates, Signature
from decant_distill.reviewed import after_review


@dataclass(frozen=True, slots=True)
class Survey:
    """The labels by line, the lines that hold none, the votes, and the prompts' signatures if asked for."""

    candidates: dict[int, Candidate]
    unreadable: dict[int, BadRow]
    tallies: dict[bytes, Tally]
    reviews: Mapping[str, Review]
    signatures: dict[bytes, Signature] = field(default_factory=dict[bytes, Signature])


class Surveyor:
    """Reads labels and notes what the rules need; equal answers of one prompt are spelled alike."""

    def __init__(
        self,
        text_rules: Sequence[TextRule],
        contamination: Contamination | None,
        *,
        with_signatures: bool,
        reviews: Mapping[str, Review],
    ) -> None:
        self._reviews = reviews
        self._text_rules = text_rules
        self._contamination = contamination
        self._hasher = MinHasher() if with_signatures else None
        self._spellings: dict[bytes, list[str]] = {}
        self._signatures: dict[bytes, Signature] = {}

    def survey(self, labels: Path) -> Survey:
        """The label file after one reading."""
        candidates: dict[int, Candidate] = {}
        unreadable: dict[int, BadRow] = {}
        for line, label in read_labels(labels):
            if isinstance(label, BadRow):
                unreadable[line] = label
            else:
                review = self._reviews.get(label.key or "")
                decision = None if review is None else review.decision
                candidates[line] = self._candidate(line, after_review(label, review), decision)
        tallies = tally_votes(candidates.values())
        return Survey(candidates, unreadable, tallies, self._reviews, self._signatures)

    def _candidate(self, line: int, label: Label, decision: Decision | None) -> Candidate:
        prompt = _digest(canonical_json(label.prompt)) if label.prompt is not None else None
        question = question_digest(label.question)
        answer = label.answer if label.status == "done" else None
        is_right = None
        if answer is not None and label.gold is not None:
            is_right = same_answer(answer, label.gold)
        if answer is not None and prompt is not None:
            answer = self._spelled_alike(prompt, answer)
        flags: dict[str, str] = {}
        if answer is not None:
            if self._hasher is not None and question not in self._signatures:
                self._signatures[question] = self._hasher.signature(label.question)
            flags = self._flags(label, question)
        return Candidate(
            line=line,
            key=label.key,
            prompt=prompt,
            question=question,
            completion=_digest(canonical_json([label.reasoning, label.answer])),
            answer=answer,
            is_right=is_right,
            error_class=None if label.status == "done" else label.error_class or "unknown",
            error=label.error,
            checks=label.checks,
            decision=decision,
            hinted=bool(label.hinted),
            confidence=label.confidence,
            flags=flags,
        )

    def _spelled_alike(self, prompt: bytes, answer: str) -> str:
        known = self._spellings.setdefault(prompt, [])
        spelled = next((spelling for spelling in known if same_answer(spelling, answer)), answer)
        if spelled not in known:
            known.append(spelled)
        return spelled

    def _flags(self, label: Label, question: bytes) -> dict[str, str]:
        found = {rule.name: why for rule in self._text_rules if (why := rule.reason(label)) is not None}
        if self._contamination is not None:
            overlap = self._contamination.overlap(label.question, self._signatures.get(question))
            if overlap is not None:
                found[Contamination.RULE] = overlap
        return found


def near_duplicates(
    candidates: Sequence[Candidate], signatures: Mapping[bytes, Signature], *, threshold: float
) -> dict[bytes, str]:
    """The prompts, by digest, that are nearly an earlier one, with the reason; the first of them stays."""
    index = NearDuplicates(threshold)
    lines: list[int] = []
    found: dict[bytes, str] = {}
    seen: set[bytes] = set()
    for candidate in candidates:
        question = candidate.question
        if question is None or question in seen or question not in signatures:
            continue
        seen.add(question)
        if (near := index.find(signatures[question])) is not None:
            number, share = near
            found[question] = f"its prompt is {share:.0%} that of line {lines[number]}"
        else:
            index.keep(signatures[question])
            lines.append(candidate.line)
    return found


def question_digest(text: str) -> bytes:
    """A digest that is equal for prompts that differ only in case, white space or Unicode form.

    Punctuation counts: `7 + 5` and `7 - 5` are two prompts.
    """
    return _digest(
        " ".join(unicodedata.normalize("NFKC", text).casefold().split()).encode("utf-8", "surrogatepass")
    )


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
