"""Rationales for what the teacher got wrong: it is shown gold, asked why, and kept when it gets there.

Rationalization of STaR (Zelikman et al., 2022, section 3.2). What reaches the label is the prompt without the
hint and a rationale that does not speak of one.
"""

import re

from decant.answers import Reading
from decant.task import same_answer
from decant_distill.arithmetic import number_in

DEFAULT_HINT = (
    "For you alone: the right answer is {gold}. Work out the steps that lead from the question to it, as if "
    "you did not know it, and do not mention that it was given."
)
HINT_MISSED = "hint_missed"
HINT_TOLD = "hint_told"

_TELLS = re.compile(
    r"\bhint(?:s|ed)?\b|\b(?:given|provided|stated|known|told|supplied) (?:\w+ )?(?:answer|solution|label)\b"
    r"|\b(?:answer|solution|label) (?:\w+ )?(?:is|was|were|has been) (?:already )?"
    r"(?:given|provided|known|told|supplied|stated)\b"
    r"|\b(?:i|we) (?:was|were|am|are|have been|'ve been) (?:told|given|informed)\b"
    r"|\bas you (?:said|told|mentioned)\b",
    re.IGNORECASE,
)


def reaches(answer: str, gold: str) -> bool:
    """Whether an answer is gold: the same text, or the same number however it is spelled."""
    if same_answer(answer, gold):
        return True
    if any(character.isalpha() for character in answer + gold):
        return False  # `B2` is not `C2`
    given, wanted = number_in(answer), number_in(gold)
    return given is not None and given == wanted


def without_hint(reading: Reading, *, gold: str, asked: str) -> Reading:
    """A hinted answer as a label: not one when it misses gold, gives no reasons, or tells of the hint.

    Words that the question uses itself tell nothing.
    """
    if reading.error_class is not None:
        return reading
    if reading.answer is None or not reaches(reading.answer, gold):
        return _none(reading, HINT_MISSED, "shown gold, it still gave another answer")
    if not reading.reasoning:
        return _none(reading, HINT_TOLD, "shown gold, it gave no reasons")
    told = next((found[0] for found in _TELLS.finditer(reading.reasoning) if found[0] not in asked), None)
    if told is not None:
        return _none(reading, HINT_TOLD, f"its reasoning tells that gold was given: {told!r}")
    return reading


def _none(reading: Reading, error_class: str, error: str) -> Reading:
    return Reading(reading.reasoning, None, error_class, error)
