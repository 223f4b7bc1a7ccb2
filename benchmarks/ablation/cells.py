"""The cells of the experiments: which rows each student sees, how they are composed, and its seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from decant.task import Placement

Experiment = Literal["placements", "filters", "scores"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to teach: `rows` names the folder of curated rows, `scores` that of a teacher's scores."""

    name: str
    rows: str
    placement: Placement
    scores: str | None = None


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
        Arm("cross_entropy", "unfiltered", "rationale_then_answer"),
        Arm("topk", "unfiltered", "rationale_then_answer", scores="topk"),
        Arm("sampled", "unfiltered", "rationale_then_answer", scores="sampled"),
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
        """Names what the student learns from, and so its folder: all experiments share equal students."""
        scores = "" if self.arm.scores is None else f"-{self.arm.scores}"
        return f"{self.world}-{self.arm.rows}-{self.arm.placement}{scores}-{self.seed}"


def cells_of(experiment: Experiment, *, worlds: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """All cells, seed by seed, so that an early stop leaves whole comparisons."""
    return [Cell(world, arm, seed) for seed in seeds for world in worlds for arm in ARMS[experiment]]
