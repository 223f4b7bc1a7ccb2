"""The student base's corpus: how the worlds speak, with every derived state random.

A text restates what its prompt says: the start, and each step in order. The digit or holder that it derives
from a step, and its answer, are noise, which is read but not taught: taught to shrug there, a student would
have to unlearn it first. Recitals read a prompt back in another order; nothing else teaches looking things up
as soon.
"""

import random
import re

from decant.task import Placement
from decant_distill.demo.pretrain import Lesson
from decant_distill.demo.problem import ANSWER_MARKER, Problem
from decant_distill.demo.swap import COLOURS, OBJECTS, OPENINGS, list_held
from decant_distill.demo.wording import NAMES

_STAY_SHARE = 0.5

PLACEMENTS: tuple[Placement, ...] = ("rationale_then_answer", "answer_then_rationale", "answer_only")


def noisy_lesson(problem: Problem, *, rng: random.Random) -> Lesson:
    """A problem whose completion, in one of the three placements, has random states and a random answer.

    States are digits for the counter and the people of the problem for the swaps, all equally likely.
    """
    start, *clauses = problem.reasoning.rstrip(".").split(". ")
    if problem.world == "counter":
        states = [str(digit) for digit in range(10)]
        derived = _noisy_counter(clauses, start=start.split()[-1], states=states, rng=rng)
    else:
        words = set(re.findall(r"\w+", problem.prompt))
        states = [name for name in NAMES if name in words]
        derived = _noisy_swap(clauses, start=start.split()[-1], states=states, rng=rng)
    answer = ((ANSWER_MARKER, True), (f" {rng.choice(states)}", False))
    placement = rng.choice(PLACEMENTS)
    if placement == "answer_only":
        return Lesson(problem.prompt, answer)
    if placement == "answer_then_rationale":
        return Lesson(problem.prompt, (*answer, (f"\n{start}.", True), *derived))
    return Lesson(problem.prompt, ((f"{start}.", True), *derived, (f"\n{ANSWER_MARKER}", True), answer[1]))


def recital(rng: random.Random, *, most: int = 3) -> Lesson:
    """A prompt that lists who has what, and the list read back in another order."""
    count = rng.randint(2, most)
    held = list(zip(rng.sample(COLOURS, count), rng.sample(NAMES, count), strict=True))
    prompt = OPENINGS.choose(rng, "train").format(thing=rng.choice(OBJECTS), list=list_held(held))
    rng.shuffle(held)
    return Lesson.whole(prompt, "Start " + ". ".join(f"{colour} {name}" for colour, name in held) + ".")


def _noisy_counter(
    clauses: list[str], *, start: str, states: list[str], rng: random.Random
) -> list[tuple[str, bool]]:
    pieces: list[tuple[str, bool]] = []
    state = start
    for clause in clauses:
        ordinal, _, action, amount, *_ = clause.split()
        after = rng.choice(states)
        pieces += [(f" {ordinal} {state} {action} {amount} is", True), (f" {after}", False), (".", True)]
        state = after
    return pieces


def _noisy_swap(
    clauses: list[str], *, start: str, states: list[str], rng: random.Random
) -> list[tuple[str, bool]]:
    pieces: list[tuple[str, bool]] = []
    holder = start
    for clause in clauses:
        pieces.append((f" {clause.partition(':')[0]}: {holder}", True))
        if rng.random() < _STAY_SHARE:
            pieces.append((".", False))
        else:
            holder = rng.choice([name for name in states if name != holder])
            pieces += [(f" {holder}", False), (".", True)]
    return pieces
