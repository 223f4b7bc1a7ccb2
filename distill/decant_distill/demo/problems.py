"""The problems stage: writes a bundled world's train, dev and test files, seeded and without leaks between
them.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from pydantic import Field, model_validator

from decant.config import Config, OutputPath
from decant.errors import DataError
from decant.files import write_jsonl
from decant_distill.demo import counter, swap
from decant_distill.demo.problem import SPLITS, WORLDS, Problem, Split, World

_MODULES: dict[World, ModuleType] = {"counter": counter, "swap": swap}

# Draws per problem before a length counts as exhausted; short chains are few (50 or so in a test split of
# two swaps).
_MOST_DRAWS = 20


class ProblemsConfig(Config):
    """Which problems to write and how many; lengths are uniform between the bounds, worlds alternate."""

    output_folder: OutputPath = Field(description="folder for train.jsonl, dev.jsonl and test.jsonl")
    world: Literal["counter", "swap", "both"] = Field(
        default="counter", description="which world, or both in equal parts"
    )
    train_count: int = Field(default=8000, ge=0, description="problems in train.jsonl")
    dev_count: int = Field(default=500, ge=0, description="problems in dev.jsonl")
    test_count: int = Field(default=500, ge=0, description="problems in test.jsonl")
    min_length: int | None = Field(
        default=None, ge=1, description="fewest steps; the world's own bound when left out"
    )
    max_length: int | None = Field(
        default=None, ge=1, description="most steps, where the world's own bound is not lower"
    )
    seed: int = Field(default=0, description="same seed, same files")

    @model_validator(mode="after")
    def _has_lengths(self) -> "ProblemsConfig":
        if self.min_length and self.max_length and self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is above max_length {self.max_length}")
        for world in self.worlds():
            if not self.lengths(world):
                module = _MODULES[world]
                raise ValueError(
                    f"these lengths hold no problem of {world}, which has {module.MIN_LENGTH} to"
                    f" {module.MAX_LENGTH} steps"
                )
        return self

    def lengths(self, world: World) -> range:
        """The lengths to draw from in a world."""
        module = _MODULES[world]
        longest = min(self.max_length or module.MAX_LENGTH, module.MAX_LENGTH)
        return range(self.min_length or module.MIN_LENGTH, longest + 1)

    def worlds(self) -> tuple[World, ...]:
        """The worlds to draw from."""
        return WORLDS if self.world == "both" else (self.world,)


CONFIG = ProblemsConfig


def run(config: ProblemsConfig) -> None:
    """Writes the three files and says what is in them."""
    counts = {"train": config.train_count, "dev": config.dev_count, "test": config.test_count}
    for split in SPLITS:
        drawn = draw_split(config, split=split, count=counts[split])
        path = config.output_folder / f"{split}.jsonl"
        write_jsonl(path, (problem.to_row() for problem in drawn.problems))
        again = (
            f", {drawn.repeated_chains} of them a known chain in new words" if drawn.repeated_chains else ""
        )
        print(f"problems: {len(drawn.problems)} {config.world} in {path}{again}", flush=True)


@dataclass(frozen=True, slots=True)
class Drawn:
    """The problems of a split, and how many reuse a chain of that split because its length had run out."""

    problems: list[Problem]
    repeated_chains: int


def draw_split(config: ProblemsConfig, *, split: Split, count: int) -> Drawn:
    """`count` problems with distinct prompts, and with distinct chains as long as a length has new ones.

    A length that runs out of chains gives known ones in new words; DataError when it runs out of wordings
    too.
    """
    drawer = _Drawer(split)
    worlds = config.worlds()
    problems: list[Problem] = []
    for index in range(count):
        world = worlds[index % len(worlds)]
        lengths = config.lengths(world)
        # The seed of one problem does not depend on how many others there are: a longer file begins like a
        # shorter one.
        rng = random.Random(f"{config.seed}/{split}/{world}/{index}")
        problems.append(drawer.draw(rng, world=world, length=rng.choice(lengths)))
    return Drawn(problems, drawer.repeated_chains)


class _Drawer:
    """Draws problems of one split, keeping count of prompts and chains already used."""

    def __init__(self, split: Split) -> None:
        self._split: Split = split
        self._prompts: set[str] = set()
        self._chains: set[tuple[str, ...]] = set()
        self.repeated_chains = 0

    def draw(self, rng: random.Random, *, world: World, length: int) -> Problem:
        draw_one: Callable[..., Problem] = _MODULES[world].draw
        spare: Problem | None = None
        for _ in range(_MOST_DRAWS):
            problem = draw_one(rng, length=length, split=self._split)
            if problem.prompt in self._prompts:
                continue
            if (world, *problem.operations) not in self._chains:
                return self._keep(problem)
            spare = problem
        if spare is None:
            raise DataError(
                f"{world}: no further problem of length {length} for {self._split};"
                " ask for fewer or longer ones"
            )
        self.repeated_chains += 1
        return self._keep(spare)

    def _keep(self, problem: Problem) -> Problem:
        self._prompts.add(problem.prompt)
        self._chains.add((problem.world, *problem.operations))
        return problem
