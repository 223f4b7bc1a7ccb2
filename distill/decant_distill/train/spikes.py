"""What counts as a spike of the loss: told from the steps before it, by medians, so that noise is not one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Of a normal distribution the standard deviation is so many times its median absolute deviation.
_SIGMAS_PER_MAD = 1.4826


@dataclass(frozen=True, slots=True)
class SpikeRule:
    """When `patience` steps in a row are a spike against the `window` steps before them.

    Loss is judged in nats, the gradient's norm by its logarithm, each by its distance from the median in
    standard deviations that are estimated from the median absolute deviation, and are never taken for less
    than the floors: a loss near 0 may double and be healthy. A large gradient is a spike only if the loss
    rises too: where a student suddenly understands, gradients grow while the loss falls.
    """

    window: int = 64
    least_history: int = 24
    patience: int = 3
    loss_sigmas: float = 8.0
    norm_sigmas: float = 6.0
    loss_sigmas_beside_norm: float = 4.0
    loss_floor: float = 0.03
    relative_loss_floor: float = 0.03
    norm_floor: float = 0.15


DEFAULT_RULE = SpikeRule()


@dataclass(frozen=True, slots=True)
class Spike:
    """`step` is the first step of it, counted from 0; `reason` says what was seen there."""

    step: int
    reason: str


def find_spike(
    losses: Sequence[float], norms: Sequence[float], rule: SpikeRule = DEFAULT_RULE
) -> Spike | None:
    """The spike that the last steps are, if they are one.

    `losses` and `norms` (of the gradient, before it is clipped) have one value per step taken. A value that
    is not finite is a spike by itself; `norms` may be one shorter, when a step's gradient is not known yet.
    """
    for name, values in (("loss", losses), ("gradient norm", norms)):
        if values and not math.isfinite(values[-1]):
            return Spike(len(values) - 1, f"{name} {values[-1]}")
    start = len(losses) - rule.patience
    if start < rule.least_history or len(norms) < len(losses):
        return None
    begin = max(0, start - rule.window)
    loss_z = _deviations(
        np.asarray(losses[begin:], dtype=np.float64), rule.patience, rule.loss_floor, rule.relative_loss_floor
    )
    if loss_z.min() <= min(rule.loss_sigmas, rule.loss_sigmas_beside_norm):
        return None
    if loss_z.min() > rule.loss_sigmas:
        return Spike(
            start, f"loss {losses[start]:.3g} after a median of {np.median(losses[begin:start]):.3g}"
        )
    logs = np.log(np.maximum(np.asarray(norms[begin:], dtype=np.float64), 1e-12))
    if _deviations(logs, rule.patience, rule.norm_floor, 0.0).min() <= rule.norm_sigmas:
        return None
    return Spike(
        start, f"gradient norm {norms[start]:.3g} after a median of {np.median(norms[begin:start]):.3g}"
    )


def _deviations(
    values: NDArray[np.float64], last: int, floor: float, relative_floor: float
) -> NDArray[np.float64]:
    """How far each of the `last` values lies above the median of those before, in robust deviations."""
    before = values[:-last]
    median = float(np.median(before))
    spread = _SIGMAS_PER_MAD * float(np.median(np.abs(before - median)))
    return (values[-last:] - median) / max(spread, floor, relative_floor * abs(median))
