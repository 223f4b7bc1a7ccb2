"""The cells of the experiments: which rows each student sees, how they are composed, and its seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from decant.task import Placement

Experiment = Literal["placements", "filters", "scores"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to teach: `rows` names the folder of curated rows, `scores` that of a teacher's scores.

    `votes` answers are sampled for each problem where a student's confidence is of interest.
    """

    name: str
    rows: str
    placement: Placement
    scores: str | None = None
    votes: int = 0


ARMS: dict[Experiment, tuple[Arm, ...]] = {
    "placements": (
        Arm("answer_only", "verified", "answer_only"),
        Arm("rationale_then_answer", "verified", "rationale_then_answer"),
        Arm("answer_then_rationale", "verified", "answer_then_rationale"),
    ),
    "filters": (
        Arm("unfiltered", "unfiltered", "rationale_then_answer"),
        Arm("majority", "majority", "rationale_then_answer"),
        Arm("verified", "verified", "rationale_then_answer"),
    ),
    "scores": (
        Arm("cross_entropy", "unfiltered", "rationale_then_answer", votes=8),
        Arm("topk", "unfiltered", "rationale_then_answer", scores="topk", votes=8),
        Arm("sampled", "unfiltered", "rationale_then_answer", scores="sampled", votes=8),
    ),
}
"""The first arm of each experiment is the one that the others are compared with."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One student: an arm in a world, with a seed."""

    world: str
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Names what the student learns from and is asked, so its folder: experiments share equal ones."""
        scores = "" if self.arm.scores is None else f"-{self.arm.scores}"
        votes = f"-{self.arm.votes}votes" if self.arm.votes else ""
        return f"{self.world}-{self.arm.rows}-{self.arm.placement}{scores}{votes}-{self.seed}"


def cells_of(experiment: Experiment, *, worlds: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """All cells, seed by seed, so that an early stop leaves whole comparisons."""
    return [Cell(world, arm, seed) for seed in seeds for world in worlds for arm in ARMS[experiment]]
