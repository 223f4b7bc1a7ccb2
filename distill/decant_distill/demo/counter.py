"""The counter world: a display of one digit goes up, goes down and is multiplied, modulo ten.

Multipliers are units modulo ten and the first digit is uniform, so every answer is equally likely: chance
is 10 %.
"""

import random

from decant_distill.demo.problem import Problem, Split, problem_id, split_of
from decant_distill.demo.wording import NAMES, ORDINALS, Phrasings

MIN_LENGTH, MAX_LENGTH = 2, 8
MULTIPLIERS: tuple[int, ...] = (3, 7, 9)
MOST_ADDED = 5
ACTIONS: tuple[str, ...] = ("plus", "minus", "times")
OBJECTS: tuple[str, ...] = ("display", "counter", "dial", "meter", "screen")

OPENINGS = Phrasings(
    taught=(
        "{name}'s {thing} shows {digit}.",
        "The {thing} of {name} shows {digit}.",
        "{name}'s {thing} reads {digit}.",
    ),
    held_out=("The {thing} of {name} reads {digit}.",),
)
QUESTIONS = Phrasings(
    taught=("Which digit does it show?", "What does it show now?", "Which digit does it read?"),
    held_out=("What does it read now?", "Which digit does it show now?"),
)
STEPS: dict[str, Phrasings] = {
    "plus": Phrasings(
        taught=(
            "it goes up by {amount}.",
            "it rises by {amount}.",
            "add {amount}.",
            "it then gains {amount}.",
        ),
        held_out=("it then rises by {amount}.", "it gains {amount}.", "then add {amount}."),
    ),
    "minus": Phrasings(
        taught=(
            "it goes down by {amount}.",
            "it falls by {amount}.",
            "take away {amount}.",
            "it then loses {amount}.",
        ),
        held_out=("it then falls by {amount}.", "it loses {amount}.", "then take away {amount}."),
    ),
    "times": Phrasings(
        taught=(
            "it is multiplied by {amount}.",
            "multiply it by {amount}.",
            "it is then scaled by {amount}.",
        ),
        held_out=(
            "it is then multiplied by {amount}.",
            "it is scaled by {amount}.",
            "then multiply it by {amount}.",
        ),
    ),
}


def draw(rng: random.Random, *, length: int, split: Split) -> Problem:
    """A problem of `length` steps whose chain belongs to `split`, worded as that split may be."""
    while True:
        start = rng.randrange(10)
        steps = [_draw_step(rng) for _ in range(length)]
        operations = (str(start), *(f"{action} {amount}" for action, amount in steps))
        if split_of("counter", operations) == split:
            break
    prompt = _prompt(rng, start=start, steps=steps, split=split)
    reasoning, answer = rationale(start, steps)
    return Problem(problem_id("counter", prompt), "counter", length, prompt, reasoning, answer, operations)


def apply(state: int, action: str, amount: int) -> int:
    """The digit shown after one step."""
    if action == "times":
        return state * amount % 10
    return (state + amount if action == "plus" else state - amount) % 10


def rationale(start: int, steps: list[tuple[str, int]]) -> tuple[str, str]:
    """The gold reasoning, one clause per step carrying the digit, and the gold answer."""
    state, clauses = start, [f"Start {start}."]
    for ordinal, (action, amount) in zip(ORDINALS, steps, strict=False):
        after = apply(state, action, amount)
        clauses.append(f"{ordinal} {state} {action} {amount} is {after}.")
        state = after
    return " ".join(clauses), str(state)


def _draw_step(rng: random.Random) -> tuple[str, int]:
    action = rng.choice(ACTIONS)
    return action, rng.choice(MULTIPLIERS) if action == "times" else rng.randint(1, MOST_ADDED)


def _prompt(rng: random.Random, *, start: int, steps: list[tuple[str, int]], split: Split) -> str:
    opening = OPENINGS.choose(rng, split).format(
        name=rng.choice(NAMES), thing=rng.choice(OBJECTS), digit=start
    )
    sentences = [
        f"{ordinal} {STEPS[action].choose(rng, split).format(amount=amount)}"
        for ordinal, (action, amount) in zip(ORDINALS, steps, strict=False)
    ]
    return " ".join((opening, *sentences, QUESTIONS.choose(rng, split)))
