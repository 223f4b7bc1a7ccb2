"""One problem of a bundled world, and the split that keeps its chain of operations on one side."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from decant.task import compose

World = Literal["counter", "swap"]
Split = Literal["train", "dev", "test"]

ANSWER_MARKER = "Answer:"

WORLDS: tuple[World, ...] = ("counter", "swap")
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

# Of 256 values of a hash's first byte, dev takes the first 26 and test the next 26: a tenth each.
_SHARE_OF_256 = 26


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with its gold rationale and answer.

    `operations` is the chain in canonical form, free of wording and names: the starting state, then one
    entry per step.
    """

    id: str
    world: World
    length: int
    prompt: str
    reasoning: str
    answer: str
    operations: tuple[str, ...]

    def completion(self) -> str:
        """The text a model is taught to write: the rationale, then the answer on a line of its own."""
        return compose(self.reasoning, self.answer, marker=ANSWER_MARKER, placement="rationale_then_answer")

    def to_row(self) -> dict[str, str | int]:
        """The dataset row of this problem."""
        return {
            "id": self.id,
            "prompt": self.prompt,
            "gold": self.answer,
            "group": self.world,
            "length": self.length,
            "reasoning": self.reasoning,
        }


def problem_id(world: World, prompt: str) -> str:
    """A name for the problem that follows from its text alone."""
    return f"{world}-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}"


def split_of(world: World, operations: tuple[str, ...]) -> Split:
    """The split a chain belongs to, whatever its wording: sha256 of the chain decides."""
    first_byte = hashlib.sha256("|".join((world, *operations)).encode()).digest()[0]
    if first_byte < _SHARE_OF_256:
        return "dev"
    return "test" if first_byte < 2 * _SHARE_OF_256 else "train"
