"""What a stage costs: serving, by hardware or by token; preparation, spread over a volume; break-even."""

from dataclasses import dataclass
from typing import Literal

_SECONDS_PER_HOUR = 3600.0

Basis = Literal["hardware", "tokens"]
BreakEven = float | Literal["never"]


@dataclass(frozen=True, slots=True)
class Cost:
    """A stage's cost in $; None where it cannot be told.

    `preparation_usd` is labeling plus training; `amortised_usd_per_1000` spreads it over the ledger's volume.
    `labels_reused` labels came from an earlier run, whose machine time is not in `labeling_usd`.
    """

    basis: Basis | None
    serving_usd_per_1000: float | None
    labeling_usd: float | None
    training_usd: float | None
    preparation_usd: float | None
    amortised_usd_per_1000: float | None
    total_usd_per_1000: float | None
    labels_reused: int


def hardware_usd_per_1000(*, price_per_hour: float, requests_per_s: float) -> float:
    """$ per 1,000 requests on hardware at `price_per_hour` that completes `requests_per_s` when full."""
    return price_per_hour / _SECONDS_PER_HOUR / requests_per_s * 1000


def tokens_usd_per_1000(
    *,
    prompt_tokens: float,
    completion_tokens: float,
    usd_per_million_prompt_tokens: float,
    usd_per_million_completion_tokens: float,
) -> float:
    """$ per 1,000 requests at token prices, from the mean tokens of one request."""
    per_request = prompt_tokens * usd_per_million_prompt_tokens
    per_request += completion_tokens * usd_per_million_completion_tokens
    return per_request / 1_000_000 * 1000


def machine_usd(*, price_per_hour: float, wall_s: float) -> float:
    """$ for `wall_s` seconds of a machine that costs `price_per_hour`."""
    return price_per_hour / _SECONDS_PER_HOUR * wall_s


def total_cost(
    *,
    basis: Basis | None,
    serving_usd_per_1000: float | None,
    labeling_usd: float | None,
    training_usd: float | None,
    labels_reused: int,
    volume: int,
) -> Cost:
    """A stage's whole cost, preparation spread over `volume` requests; a part not stated counts nothing."""
    parts = [part for part in (labeling_usd, training_usd) if part is not None]
    preparation = sum(parts) if parts else None
    amortised = None if preparation is None else preparation / volume * 1000
    total = None if serving_usd_per_1000 is None else serving_usd_per_1000 + (amortised or 0.0)
    return Cost(
        basis=basis,
        serving_usd_per_1000=serving_usd_per_1000,
        labeling_usd=labeling_usd,
        training_usd=training_usd,
        preparation_usd=preparation,
        amortised_usd_per_1000=amortised,
        total_usd_per_1000=total,
        labels_reused=labels_reused,
    )


def break_even_requests(cost: Cost, *, teacher: Cost) -> BreakEven | None:
    """The volume from which a stage, preparation paid, undercuts the teacher; None where a cost is open."""
    if (
        cost.serving_usd_per_1000 is None
        or teacher.serving_usd_per_1000 is None
        or cost.preparation_usd is None
    ):
        return None
    saved_per_request = (teacher.serving_usd_per_1000 - cost.serving_usd_per_1000) / 1000
    return cost.preparation_usd / saved_per_request if saved_per_request > 0 else "never"
