"""The student base's corpus: how the worlds speak, with every derived state drawn at random, so that no answer can be learned from it.

A text restates what its prompt says: the start, and each step in order. The digit or holder that it derives from a step is
noise, and is read but not taught: a base taught that digits are noise has to unlearn it first. Its answer is taught noise. Recitals read a prompt back in another order; they teach looking things up, and nothing else does as soon.
"""

import random
import re

from decant.task import Placement
from decant_distill.demo.pretrain import Lesson
from decant_distill.demo.problem import ANSWER_MARKER, Problem
from decant_distill.demo.swap import COLOURS, OBJECTS, OPENINGS, SWAPS, list_held
from decant_distill.demo.wording import NAMES, ORDINALS

PLACEMENTS: tuple[Placement, ...] = ("rationale_then_answer", "answer_then_rationale", "answer_only")


def noisy_lesson(problem: Problem, *, rng: random.Random) -> Lesson:
    """A problem whose completion, in one of the three placements, has random states and a random answer.

    States are digits for the counter and the people of the problem for the swaps, all equally likely.
    """
    start, *clauses = problem.reasoning.rstrip(".").split(". ")
    state = start.split()[-1]
    if problem.world == "counter":
        states = [str(digit) for digit in range(10)]
        reasoning = _noisy_counter(clauses, start=state, states=states, rng=rng)
    else:
        words = set(re.findall(r"\w+", problem.prompt))
        states = [name for name in NAMES if name in words]
        reasoning = _noisy_swap(clauses, start=state, states=states, rng=rng)
    pieces = ((start, True), *reasoning, (".", True))
    answer = f"{ANSWER_MARKER} {rng.choice(states)}"
    placement = rng.choice(PLACEMENTS)
    if placement == "answer_only":
        return Lesson.whole(problem.prompt, answer)
    before, after = ((), pieces) if placement == "answer_then_rationale" else (pieces, ())
    joined = f"{chr(10) if before else ''}{answer}{chr(10) if after else ''}"
    return Lesson(problem.prompt, (*before, (joined, True), *after))


def recital(rng: random.Random, *, most: int = 3) -> Lesson:
    """A prompt that lists who has what or who swaps with whom, and what it says read back in another order."""
    count = rng.randint(2, most)
    people = rng.sample(NAMES, 2 * count)
    if rng.random() < 0.5:
        held = list(zip(rng.sample(COLOURS, count), people, strict=False))
        prompt = OPENINGS.choose(rng, "train").format(thing=rng.choice(OBJECTS), list=list_held(held))
        facts = [f"{colour} {name}" for colour, name in held]
    else:
        pairs = list(zip(people[::2], people[1::2], strict=True))
        swaps = [SWAPS.choose(rng, "train").format(*pair) for pair in pairs]
        prompt = " ".join(f"{ordinal} {swap}" for ordinal, swap in zip(ORDINALS, swaps, strict=False))
        facts = [f"{first} to {second}" for pair in pairs for first, second in (pair, pair[::-1])]
    rng.shuffle(facts)
    return Lesson.whole(prompt, f"Start {'. '.join(facts)}.")


def _noisy_counter(clauses: list[str], *, start: str, states: list[str], rng: random.Random) -> list[tuple[str, bool]]:
    pieces, state = [], start
    for clause in clauses:
        ordinal, _, action, amount, *_ = clause.split()
        after = rng.choice(states)
        pieces += [(f". {ordinal} {state} {action} {amount} is", True), (f" {after}", False)]
        state = after
    return pieces


def _noisy_swap(clauses: list[str], *, start: str, states: list[str], rng: random.Random) -> list[tuple[str, bool]]:
    pieces, holder = [], start
    for clause in clauses:
        receiver = rng.choice([None, *states])
        pieces += [
            (f". {clause.partition(':')[0]}: {holder}", True),
            (f" to {receiver}" if receiver else " stays", False),
        ]
        holder = receiver or holder
    return pieces
