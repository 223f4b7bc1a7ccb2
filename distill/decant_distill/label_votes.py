"""How many samples of a prompt to draw: until the leading answer is the true majority, surely enough."""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import comb

from decant.task import normal_answer


def count_votes(answers: Iterable[str | None]) -> Counter[str]:
    """How many samples gave each answer; answers that differ only in case and white space are one."""
    return Counter(normal_answer(answer) for answer in answers if answer is not None)


def majority_probability(first: int, second: int) -> float:
    """The posterior probability that the leading answer is likelier than the runner-up.

    Their share has a uniform prior, so it is Beta(first + 1, second + 1), and its part above 1/2 a binomial
    sum. The stopping rule of Aggarwal et al., "Let's Sample Step by Step" (2023), section 3.
    """
    tosses = first + second + 1
    return sum(comb(tosses, heads) for heads in range(first + 1)) / 2**tosses


def further_samples(answers: Sequence[str | None], *, most: int, confidence: float) -> int:
    """How many samples to draw beyond these, one per sample drawn, None where it gave no answer; 0 to stop.

    It is the fewest after which the leading answer could be sure: drawing them one at a time would stop no
    earlier. A prompt that got no answer at all is not asked again.
    """
    ranked = [count for _, count in count_votes(answers).most_common(2)]
    if not ranked:
        return 0
    first, second = ranked[0], ranked[1] if len(ranked) > 1 else 0
    further = 0
    while majority_probability(first + further, second) < confidence and len(answers) + further < most:
        further += 1
    return further
