"""The rules of curation: each takes the labels that are left and says which it drops and why."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from decant.answers import BAD_JSON, CUT, NO_ANSWER, SCHEMA
from decant.reviews import Decision
from decant.task import normal_answer
from decant_distill.label_votes import majority_probability

Keep = Literal["all", "majority", "verified"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What the rules need to know of one label; texts are held as digests, so that a million fit in memory.

    `question` is the digest of the normalised prompt, to compare with an evaluation set. `is_right` compares
    with gold and is None where there is none. Equal answers of one prompt are spelled alike. `flags` says, by
    rule, what is wrong with its text. `decision` is what a reviewer said of it; a hinted answer is gold, and
    no vote of the teacher's.
    """

    line: int
    key: str | None
    prompt: bytes | None
    question: bytes | None
    completion: bytes | None
    answer: str | None
    is_right: bool | None
    error_class: str | None
    error: str | None
    checks: Mapping[str, bool | None] | None = None
    decision: Decision | None = None
    hinted: bool = False
    confidence: float | None = None
    flags: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def is_accepted(self) -> bool:
        """Whether a person stands behind it."""
        return self.decision in ("accept", "edit")


@dataclass(frozen=True, slots=True)
class Drop:
    """One label that a rule dropped: its line in the label file, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A named rule; `drops` sees only what the rules before it left, and never what the rule `spares`."""

    name: str
    what: str
    drops: Callable[[Sequence[Candidate]], Iterable[Drop]]
    spares: Callable[[Candidate], bool] = lambda _: False


def accepted(candidate: Candidate) -> bool:
    """Spares what a person accepted or wrote from rules that judge whether a label is good."""
    return candidate.is_accepted


def not_voted(candidate: Candidate) -> bool:
    """Spares those too on which the samples had no say."""
    return candidate.is_accepted or candidate.hinted


@dataclass(frozen=True, slots=True)
class Tally:
    """The votes on one prompt: how many samples were drawn, failed ones included, and who got how many."""

    drawn: int
    votes: Mapping[str, int]

    def share(self, answer: str) -> float:
        """The part of all drawn samples that gave this answer."""
        return self.votes.get(answer, 0) / self.drawn

    @property
    def winner(self) -> str | None:
        """The answer with more votes than any other, or None for a tie."""
        ranked = sorted(self.votes.items(), key=lambda item: -item[1])
        is_clear = ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1])
        return ranked[0][0] if is_clear else None


def tally_votes(candidates: Iterable[Candidate]) -> dict[bytes, Tally]:
    """The votes per prompt. A label that stands under two row ids is one request, and votes once."""
    drawn: dict[bytes, set[str]] = defaultdict(set)
    votes: dict[bytes, Counter[str]] = defaultdict(Counter)
    for candidate in candidates:
        if candidate.prompt is None or candidate.key is None or candidate.hinted:
            continue
        if candidate.key in drawn[candidate.prompt]:
            continue
        drawn[candidate.prompt].add(candidate.key)
        if candidate.error_class is None and candidate.answer is not None:
            votes[candidate.prompt][candidate.answer] += 1
    return {prompt: Tally(len(keys), votes[prompt]) for prompt, keys in drawn.items()}


def usable_rules() -> list[Rule]:
    """What drops labels that are none: failed requests, cut answers, answers without a marker."""

    unread = (NO_ANSWER, BAD_JSON, SCHEMA)

    def is_failed(candidate: Candidate) -> bool:
        return candidate.error_class not in (None, CUT, *unread)

    return [
        _by_error("failed", "the request failed or the row could not be asked", is_failed),
        _by_error("cut", "the answer was cut at max_tokens", lambda candidate: candidate.error_class == CUT),
        _by_error("no_answer", "no answer marker", lambda candidate: candidate.error_class in unread),
    ]


def decontamination_rule(questions: Collection[bytes]) -> Rule:
    """Drops prompts that stand in the evaluation set."""

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        for candidate in candidates:
            if candidate.question in questions:
                yield Drop(candidate.line, "its prompt stands in the evaluation set")

    return Rule("decontamination", "the prompt stands in the evaluation set", drops)


def vote_rule(tallies: Mapping[bytes, Tally], *, min_votes: int) -> Rule:
    """Keeps only what the samples of a prompt agree on: the most frequent answer, if it has enough votes."""

    def reason(candidate: Candidate) -> str | None:
        assert candidate.prompt is not None
        assert candidate.answer is not None
        tally = tallies[candidate.prompt]
        votes = tally.votes[candidate.answer]
        if tally.winner is None:
            return f"a tie: no answer of its prompt has more votes than all others ({tally.drawn} samples)"
        if candidate.answer != tally.winner:
            return f"{votes} of {tally.drawn} votes; {tally.winner!r} has {tally.votes[tally.winner]}"
        if votes < min_votes:
            return f"{votes} of {tally.drawn} votes, fewer than {min_votes}"
        return None

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        return (Drop(one.line, why) for one in candidates if (why := reason(one)))

    what = f"not the most frequent answer of its prompt, or fewer than {min_votes} votes"
    return Rule("vote", what, drops, spares=not_voted)


def verified_rule() -> Rule:
    """Keeps only answers that equal gold."""

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        for candidate in candidates:
            if not candidate.is_right:
                known = candidate.is_right is not None
                yield Drop(candidate.line, "the answer is not gold" if known else "the row has no gold")

    return Rule("verified", "the answer does not equal gold", drops, spares=accepted)


def duplicate_rule() -> Rule:
    """Drops the second and later labels with the same prompt and the same completion."""

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        first: dict[tuple[bytes | None, bytes | None], int] = {}
        for candidate in candidates:
            line = first.setdefault((candidate.prompt, candidate.completion), candidate.line)
            if line != candidate.line:
                yield Drop(candidate.line, f"the same prompt and completion as line {line}")

    return Rule("duplicate", "the same prompt and completion as an earlier label", drops)


def cap_rule(most: int) -> Rule:
    """Keeps the first `most` labels of each prompt."""

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        kept: Counter[bytes | None] = Counter()
        for candidate in candidates:
            kept[candidate.prompt] += 1
            if kept[candidate.prompt] > most:
                yield Drop(candidate.line, f"its prompt has {most} already")

    return Rule("cap", f"more than {most} for one prompt", drops)


def share_rule(tallies: Mapping[bytes, Tally], *, least: float) -> Rule:
    """Drops answers that too few of the samples gave."""

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        for candidate in candidates:
            assert candidate.prompt is not None
            assert candidate.answer is not None
            share = tallies[candidate.prompt].share(candidate.answer)
            if share < least:
                yield Drop(candidate.line, f"{share:.2f} of the votes")

    return Rule("vote_share", f"less than {least:g} of the votes", drops, spares=not_voted)


def confidence_rule(tallies: Mapping[bytes, Tally], *, least: float) -> Rule:
    """Drops answers that are not surely enough the one that the teacher gives most often."""

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        for candidate in candidates:
            assert candidate.prompt is not None
            assert candidate.answer is not None
            votes = tallies[candidate.prompt].votes
            rival = max((n for answer, n in votes.items() if answer != candidate.answer), default=0)
            sure = majority_probability(votes[candidate.answer], rival)
            if sure < least:
                yield Drop(candidate.line, f"the majority with probability {sure:.2f}")

    what = f"the majority with a probability below {least:g}"
    return Rule("confidence", what, drops, spares=not_voted)


def calibrated_rule(*, least: float) -> Rule:
    """Drops answers that are right with too small a probability, as `decant label` calibrated it on gold."""

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        for candidate in candidates:
            if candidate.confidence is None:
                yield Drop(candidate.line, "it was never calibrated")
            elif candidate.confidence < least:
                yield Drop(candidate.line, f"right with probability {candidate.confidence:.2f}")

    return Rule("calibrated", f"right with a probability below {least:g}", drops, spares=not_voted)


def review_rule() -> Rule:
    """Drops what a reviewer rejected."""

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        return (Drop(one.line, "a reviewer rejected it") for one in candidates if one.decision == "reject")

    return Rule("review", "a reviewer rejected it", drops)


def checks_rule(*, all_passed: bool) -> Rule:
    """Drops labels that a verifier rejects; with `all_passed`, those too that one could not judge."""

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        for candidate in candidates:
            checks = candidate.checks or {}
            bad = [name for name, passed in checks.items() if passed is False or (all_passed and not passed)]
            if bad or (all_passed and not checks):
                yield Drop(candidate.line, f"not passed: {', '.join(bad)}" if bad else "it was never checked")

    return Rule("checks", "a verifier did not pass it", drops, spares=accepted)


def flag_rule(name: str, what: str, *, judges: bool = False) -> Rule:
    """Drops the labels whose text has this flag; with `judges`, not what a person accepted."""

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        return (Drop(one.line, one.flags[name]) for one in candidates if name in one.flags)

    return Rule(name, what, drops, spares=accepted) if judges else Rule(name, what, drops)


def near_duplicate_rule(find: Callable[[Sequence[Candidate]], Mapping[bytes, str]]) -> Rule:
    """Drops the labels of prompts that are nearly an earlier one; `find` gives the reason by digest."""

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        found = find(candidates)
        for candidate in candidates:
            if candidate.question is not None and candidate.question in found:
                yield Drop(candidate.line, found[candidate.question])

    return Rule("near_duplicate", "the prompt is nearly an earlier one", drops)


def balance_rule(most: float, *, order: Callable[[Candidate], bytes]) -> Rule:
    """Leaves no answer more than `most` times the labels of the median answer; `order` says which stay."""

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        classes: dict[str, list[Candidate]] = defaultdict(list)
        for candidate in candidates:
            classes[normal_answer(candidate.answer or "")].append(candidate)
        limit = max(1, round(most * median(map(len, classes.values())))) if classes else 0
        for labels in classes.values():
            for candidate in sorted(labels, key=order)[limit:]:
                yield Drop(candidate.line, f"its answer has {len(labels)} labels, the limit is {limit}")

    return Rule("balance", f"more than {most:g} times the labels of the median answer", drops)


Dropped = dict[str, dict[int, str]]
"""By rule: the lines that it dropped, with the reasons, in file order."""


def apply_rules(
    candidates: Sequence[Candidate], rules: Sequence[Rule], *, dropped: Dropped | None = None
) -> Dropped:
    """Runs the rules in order; what each takes is in `dropped` at once, for later ones to learn from."""
    dropped = {} if dropped is None else dropped
    left = list(candidates)
    for rule in rules:
        judged = [candidate for candidate in left if not rule.spares(candidate)]
        lines = {drop.line: drop.reason for drop in rule.drops(judged)}
        dropped[rule.name] = dict(sorted(lines.items()))
        left = [candidate for candidate in left if candidate.line not in lines]
    return dropped


def _by_error(name: str, what: str, matches: Callable[[Candidate], bool]) -> Rule:
    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        for candidate in candidates:
            if matches(candidate):
                yield Drop(candidate.line, f"{candidate.error_class}: {candidate.error}")

    return Rule(name, what, drops)
