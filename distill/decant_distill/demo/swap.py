"""The gift-swap world: five people hold five things and swap in pairs; who ends up with the one asked for?
Chance is 20 %.

Composing permutations of five elements is NC1-complete (Barrington, 1989): no model of fixed depth answers
directly at growing length.
"""

import random

from decant_distill.demo.problem import Problem, Split, problem_id, split_of
from decant_distill.demo.wording import NAMES, ORDINALS, Phrasings

MIN_LENGTH, MAX_LENGTH = 2, 10
PEOPLE = 5
COLOURS: tuple[str, ...] = ("red", "blue", "green", "pink", "gold", "black", "white", "grey")
OBJECTS: tuple[str, ...] = ("gift", "hat", "kite", "ball", "cup", "book")

OPENINGS = Phrasings(
    taught=("Five {thing}s: {list}.", "Here are five {thing}s: {list}.", "The {thing}s today: {list}."),
    held_out=("Five {thing}s today: {list}.", "Here are the {thing}s: {list}."),
)
QUESTIONS = Phrasings(
    taught=("Who has the {thing}?", "Who holds the {thing} now?", "Who gets the {thing}?"),
    held_out=("Who has the {thing} now?", "Who holds the {thing}?"),
)
SWAPS = Phrasings(
    taught=(
        "{0} and {1} swap.",
        "{0} and {1} then trade.",
        "{0} swaps with {1}.",
        "{0} then trades with {1}.",
    ),
    held_out=(
        "{0} and {1} then swap.",
        "{0} and {1} trade.",
        "{0} then swaps with {1}.",
        "{0} trades with {1}.",
    ),
)


def draw(rng: random.Random, *, length: int, split: Split) -> Problem:
    """A problem of `length` swaps whose chain belongs to `split`, worded as that split may be.

    The chain is the swaps by position in the opening list, without the question: whoever is asked about, a
    chain stays in its split.
    """
    while True:
        pairs = _draw_pairs(rng, length)
        operations = ("12345", *(f"{min(pair) + 1}-{max(pair) + 1}" for pair in pairs))
        if split_of("swap", operations) == split:
            break
    names = rng.sample(NAMES, PEOPLE)
    colours = rng.sample(COLOURS, PEOPLE)
    asked = rng.randrange(PEOPLE)
    swaps = [(names[first], names[second]) for first, second in pairs]
    prompt = _prompt(rng, names=names, colours=colours, asked=colours[asked], swaps=swaps, split=split)
    reasoning, answer = rationale(colours[asked], holder=names[asked], swaps=swaps)
    return Problem(problem_id("swap", prompt), "swap", length, prompt, reasoning, answer, operations)


def rationale(colour: str, *, holder: str, swaps: list[tuple[str, str]]) -> tuple[str, str]:
    """The gold reasoning, one clause per swap, and the gold answer.

    A clause reads the swap there and back, then says who holds the thing asked for and, if it moves, who
    holds it next. Written so, the next holder is whoever stands beside the holder a few words before, which
    a model of two layers finds by its copying heads; to compare three names it needs many times the steps.
    """
    clauses = [f"Start {colour} {holder}."]
    for ordinal, (first, second) in zip(ORDINALS, swaps, strict=False):
        after = {first: second, second: first}.get(holder, holder)
        moves = f" {after}" if after != holder else ""
        clauses.append(f"{ordinal} {first} {second} {first}: {holder}{moves}.")
        holder = after
    return " ".join(clauses), holder


def list_held(held: list[tuple[str, str]]) -> str:
    """The opening's list of (colour, name)."""
    return ", ".join(f"{colour} {name}'s" for colour, name in held)


def _draw_pairs(rng: random.Random, length: int) -> list[tuple[int, int]]:
    """Ordered pairs of positions; no pair twice in a row, since that would undo itself and shorten the
    problem.
    """
    pairs: list[tuple[int, int]] = []
    while len(pairs) < length:
        first, second = rng.sample(range(PEOPLE), 2)
        if not pairs or {first, second} != set(pairs[-1]):
            pairs.append((first, second))
    return pairs


def _prompt(
    rng: random.Random,
    *,
    names: list[str],
    colours: list[str],
    asked: str,
    swaps: list[tuple[str, str]],
    split: Split,
) -> str:
    noun = rng.choice(OBJECTS)
    held = list(zip(colours, names, strict=True))
    opening = OPENINGS.choose(rng, split).format(thing=noun, list=list_held(held))
    sentences = [
        f"{ordinal} {SWAPS.choose(rng, split).format(first, second)}"
        for ordinal, (first, second) in zip(ORDINALS, swaps, strict=False)
    ]
    question = QUESTIONS.choose(rng, split).format(thing=f"{asked} {noun}")
    return " ".join((opening, *sentences, question))
