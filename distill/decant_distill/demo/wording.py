"""What both worlds choose their words from: names, and phrasings of which some never occur in training."""

import random
from dataclasses import dataclass

from decant_distill.demo.problem import Split

NAMES: tuple[str, ...] = (
    "Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jo", "Kim", "Leo",
    "Mia", "Ned", "Olga", "Pam", "Ray", "Sue", "Tom", "Una",
)  # fmt: skip

# Prompt and rationale number the steps in the same words: with them a small model finds the step to read
# next by its
# name; without them it has to count sentences, which it learns many times later.
ORDINALS: tuple[str, ...] = (
    "First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth", "Ninth", "Tenth",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Phrasings:
    """Ways to say one thing: `taught` occur in every split, `held_out` in dev and test only."""

    taught: tuple[str, ...]
    held_out: tuple[str, ...]

    def choose(self, rng: random.Random, split: Split) -> str:
        """A phrasing allowed in the split; dev and test use held-out ones half of the time."""
        if split != "train" and rng.random() < 0.5:
            return rng.choice(self.held_out)
        return rng.choice(self.taught)
