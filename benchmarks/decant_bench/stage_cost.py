"""A stage's cost from the records of its replay, its labeling and its training."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from decant.artifact import read_manifest
from decant.errors import DataError
from decant_bench.cost import Basis, Cost, hardware_usd_per_1000, machine_usd, tokens_usd_per_1000, total_cost
from decant_bench.predictions import Evaluation


class _LabelSummary(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    cost_usd: float | None = None
    wall_s: float
    reused: int = 0


def stage_cost(
    evaluation: Evaluation,
    *,
    label_summary: Path | None,
    trained: Path | None,
    price_per_hour: float | None,
    labeling_price_per_hour: float | None,
    volume: int,
) -> Cost:
    """The stage's cost; for serving, the endpoint's own price per hour goes before `price_per_hour`."""
    basis, serving = _serving(evaluation, price_per_hour=price_per_hour)
    labels = None if label_summary is None else _read_summary(label_summary)
    by_token = bool(labels and labels.cost_usd)
    return total_cost(
        basis=basis,
        serving_usd_per_1000=serving,
        labeling_usd=None if labels is None else _labeling_usd(labels, labeling_price_per_hour),
        training_usd=_training_usd(trained, price_per_hour),
        labels_reused=0 if labels is None or by_token else labels.reused,
        volume=volume,
    )


def _serving(evaluation: Evaluation, *, price_per_hour: float | None) -> tuple[Basis | None, float | None]:
    prices = evaluation.prices
    prompt_price, completion_price = (
        prices.usd_per_million_prompt_tokens,
        prices.usd_per_million_completion_tokens,
    )
    if prompt_price is not None or completion_price is not None:
        prompt, completion = evaluation.tokens.prompt_mean, evaluation.tokens.completion_mean
        if prompt is None or completion is None:
            return None, None
        usd = tokens_usd_per_1000(
            prompt_tokens=prompt,
            completion_tokens=completion,
            usd_per_million_prompt_tokens=prompt_price or 0.0,
            usd_per_million_completion_tokens=completion_price or 0.0,
        )
        return "tokens", usd
    hourly = prices.price_per_hour if prices.price_per_hour is not None else price_per_hour
    capacity = evaluation.saturation.requests_per_s
    if hourly is None or not capacity:
        return None, None
    return "hardware", hardware_usd_per_1000(price_per_hour=hourly, requests_per_s=capacity)


def _read_summary(file: Path) -> _LabelSummary:
    try:
        return _LabelSummary.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{file}: is no summary of `decant label` ({reason}); run `decant label` again"
        ) from None


def _labeling_usd(labels: _LabelSummary, price_per_hour: float | None) -> float | None:
    """What the labels cost at token prices, else the machine's time; None where neither is stated."""
    if labels.cost_usd:
        return labels.cost_usd
    return (
        None if price_per_hour is None else machine_usd(price_per_hour=price_per_hour, wall_s=labels.wall_s)
    )


def _training_usd(folder: Path | None, price_per_hour: float | None) -> float | None:
    if folder is None:
        return None
    training = read_manifest(folder).training
    if training is None or "wall_s" not in training:
        raise DataError(
            f"{folder}: its manifest has no training time; name the folder that `decant train` wrote"
        )
    return (
        None
        if price_per_hour is None
        else machine_usd(price_per_hour=price_per_hour, wall_s=training["wall_s"])
    )
