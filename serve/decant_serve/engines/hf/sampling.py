"""From logits to tokens: greedy, or drawn by temperature and top-p with each row's own random numbers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one answer is drawn. Temperature 0 is greedy; `top_logprobs` None reports no log probabilities."""

    temperature: float
    top_p: float
    seed: int | None
    max_tokens: int
    stops: tuple[str, ...]
    top_logprobs: int | None


@dataclass(frozen=True, slots=True)
class Scored:
    """A token's natural-log probability before temperature, and the likeliest `(id, logprob)`."""

    logprob: float
    top: tuple[tuple[int, float], ...]


def choose(
    logits_BV: "torch.Tensor", samplings: Sequence[Sampling], randoms: Sequence[random.Random]
) -> list[int]:
    """One token per row. A row draws one number per token: its seed gives the same answer in any batch."""
    import torch

    greedy_B = logits_BV.argmax(-1)
    rows = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    chosen: list[int] = greedy_B.tolist()
    if not rows:
        return chosen
    device = logits_BV.device
    temperatures_B1 = torch.tensor([[samplings[row].temperature] for row in rows], device=device)
    probabilities_BV = torch.softmax(logits_BV[rows].double() / temperatures_B1, -1)
    draws_B1 = torch.tensor([[randoms[row].random()] for row in rows], dtype=torch.float64, device=device)
    top_ps_B1 = torch.tensor([[samplings[row].top_p] for row in rows], dtype=torch.float64, device=device)
    for row, token in zip(rows, _draw(probabilities_BV, draws_B1, top_ps_B1), strict=True):
        chosen[row] = token
    return chosen


def _draw(probabilities_BV: "torch.Tensor", draws_B1: "torch.Tensor", top_ps_B1: "torch.Tensor") -> list[int]:
    """Inverts each row's cumulative distribution, cut to its nucleus (Holtzman et al. 2020) by top-p."""
    import torch

    order_BV = None
    if bool((top_ps_B1 < 1).any()):
        probabilities_BV, order_BV = probabilities_BV.sort(-1, descending=True)
        before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
        probabilities_BV = probabilities_BV.masked_fill(before_BV >= top_ps_B1, 0.0)
    cumulative_BV = probabilities_BV.cumsum(-1)
    # Right of the draw, so that a token of probability 0 is never taken.
    index_B1 = torch.searchsorted(cumulative_BV, draws_B1 * cumulative_BV[:, -1:], right=True)
    index_B1 = index_B1.clamp(max=cumulative_BV.shape[1] - 1)
    taken_B1 = index_B1 if order_BV is None else order_BV.gather(1, index_B1)
    return taken_B1[:, 0].tolist()


def score(
    logits_BV: "torch.Tensor", token_ids: Sequence[int], samplings: Sequence[Sampling]
) -> list[Scored | None]:
    """The log probabilities that each row asked for; None for rows that did not."""
    import torch

    wanted = [row for row, sampling in enumerate(samplings) if sampling.top_logprobs is not None]
    scores: list[Scored | None] = [None] * len(samplings)
    if not wanted:
        return scores
    logprobs_BV = torch.log_softmax(logits_BV[wanted], -1)
    most = max(samplings[row].top_logprobs or 0 for row in wanted)
    values_BK, ids_BK = logprobs_BV.topk(most) if most else (logprobs_BV[:, :0], logprobs_BV[:, :0].long())
    for place, row in enumerate(wanted):
        count = samplings[row].top_logprobs or 0
        top = zip(ids_BK[place, :count].tolist(), values_BK[place, :count].tolist(), strict=True)
        scores[row] = Scored(float(logprobs_BV[place, token_ids[row]]), tuple(top))
    return scores
