"""Going back before a spike and around its batches, as PaLM was trained (arXiv 2204.02311, section 5.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from decant_distill.train.spikes import Spike

# PaLM went back about 100 steps and skipped 200 to 500 batches, in runs of some hundred thousand steps. A
# fine-tuning run is short: it goes back a fiftieth of itself, within these bounds, and skips five times that.
_SHARE_BACK = 50
_LEAST_BACK, _MOST_BACK = 5, 100
_SKIPPED_PER_BACK = 5


class Rewind(BaseModel, frozen=True):
    """One return to an earlier step; the plan's batches from `skip_start` to `skip_stop` are left out since.

    Steps count from 0. `spike_step` is where the spike began, `to_step` the checkpoint that was gone back to.
    """

    spike_step: int
    to_step: int
    skip_start: int
    skip_stop: int
    reason: str


@dataclass(frozen=True, slots=True)
class Distances:
    """How many steps before a spike to restart at least, and how many batches to leave out."""

    back: int
    skipped: int

    @classmethod
    def for_run(cls, steps: int, *, back: int | None = None, skipped: int | None = None) -> "Distances":
        """PaLM's distances scaled to a run of so many steps, where they are not given."""
        chosen = back or min(max(round(steps / _SHARE_BACK), _LEAST_BACK), _MOST_BACK)
        return cls(back=chosen, skipped=skipped or _SKIPPED_PER_BACK * chosen)


def plan_rewind(spike: Spike, *, to_step: int, earlier: Sequence[Rewind], distances: Distances) -> Rewind:
    """The rewind that a spike asks for: from `back` steps before it the batches are left out.

    A spike that meets the run again right behind the batches left out last time means that they were too few:
    each such time the stretch left out behind the spike doubles.
    """
    first = max(spike.step - distances.back, to_step)
    skip_start = batch_at(first, earlier)
    behind = max(distances.skipped - (spike.step - first), 1)
    in_a_row = 0
    for rewind in reversed(earlier):
        if spike.step > rewind.spike_step + distances.back:
            break
        in_a_row += 1
    skip_stop = batch_at(spike.step, earlier) + behind * 2**in_a_row
    return Rewind(
        spike_step=spike.step,
        to_step=to_step,
        skip_start=skip_start,
        skip_stop=skip_stop,
        reason=spike.reason,
    )


def batch_at(step: int, rewinds: Sequence[Rewind]) -> int:
    """Which of the plan's batches this step takes, once the batches of these rewinds are left out."""
    index = step
    for start, stop in left_out(rewinds):
        if start > index:
            break
        index += stop - start
    return index


def left_out(rewinds: Sequence[Rewind]) -> list[tuple[int, int]]:
    """The plan's batches that are left out, as ascending stretches [start, stop) that do not touch."""
    stretches: list[tuple[int, int]] = []
    for start, stop in sorted((rewind.skip_start, rewind.skip_stop) for rewind in rewinds):
        if stretches and start <= stretches[-1][1]:
            stretches[-1] = (stretches[-1][0], max(stop, stretches[-1][1]))
        else:
            stretches.append((start, stop))
    return stretches
