"""The student base's corpus: how the worlds speak, with every derived state drawn at random, so that no answer can be learned from it.

A text restates what its prompt says: the start, and each step in order. The digit or holder it claims after a step, and
the answer, are noise. Recitals read a list back in another order; they teach looking things up, and nothing else does as soon.
"""

import random
import re

from decant.task import Placement, compose
from decant_distill.demo.problem import ANSWER_MARKER, Problem
from decant_distill.demo.swap import COLOURS, OBJECTS, OPENINGS, list_held
from decant_distill.demo.wording import NAMES

PLACEMENTS: tuple[Placement, ...] = ("rationale_then_answer", "answer_then_rationale", "answer_only")


def noisy_completion(problem: Problem, *, rng: random.Random) -> str:
    """A completion in one of the three placements: the start and the steps are the prompt's, states and answer random.

    States are digits for the counter and the people of the problem for the swaps, all equally likely.
    """
    states = _possible_states(problem)
    start, *clauses = problem.reasoning.rstrip(".").split(". ")
    noisy = [f"{clause.rpartition(' ')[0]} {rng.choice(states)}" for clause in clauses]
    reasoning = ". ".join((start, *noisy)) + "."
    return compose(reasoning, rng.choice(states), marker=ANSWER_MARKER, placement=rng.choice(PLACEMENTS))


def recital(rng: random.Random, *, most: int = 3) -> tuple[str, str]:
    """A prompt that lists who has what, and the list read back in another order."""
    count = rng.randint(2, most)
    held = list(zip(rng.sample(COLOURS, count), rng.sample(NAMES, count), strict=True))
    prompt = f"{OPENINGS.choose(rng, 'train').format(thing=rng.choice(OBJECTS), list=list_held(held))}"
    rng.shuffle(held)
    return prompt, "Start " + ". ".join(f"{colour} {name}" for colour, name in held) + "."


def _possible_states(problem: Problem) -> list[str]:
    if problem.world == "counter":
        return [str(digit) for digit in range(10)]
    words = set(re.findall(r"\w+", problem.prompt))
    return [name for name in NAMES if name in words]
