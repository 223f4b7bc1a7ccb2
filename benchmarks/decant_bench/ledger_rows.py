"""The ledger's rows: everything that is known about each stage, joined by request."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from decant.artifact import WEIGHT_SUFFIXES, has_manifest, read_manifest
from decant.errors import ArtifactError
from decant.stats import non_inferior
from decant.timing import Summary
from decant_bench.cost import BreakEven, Cost, break_even_requests
from decant_bench.latency import latency_summaries
from decant_bench.ledger_config import GateRule, LedgerConfig, StageConfig
from decant_bench.predictions import BAD_ROW, Evaluation, Prediction, PredictionFolder
from decant_bench.quality import (
    Difference,
    Joined,
    LengthBucket,
    Proportion,
    accuracy,
    agreement,
    by_length,
    difference,
    join,
)
from decant_bench.stage_cost import stage_cost

Verdict = Literal["within", "unclear", "lost"]


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """The golden-prompt check of the stage as it was served; `kinds` names what broke."""

    checked: int
    kinds: tuple[str, ...]
    max_logprob_gap: float | None
    flips: int | None


@dataclass(frozen=True, slots=True)
class Requests:
    """How the stage's requests ended.

    `missing` were asked of other stages only; `bad_rows` are dataset lines that never became requests.
    """

    n: int
    completed: int
    failed: int
    bad_rows: int
    missing: int
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One stage; None stands for what was not measured or does not apply."""

    stage: str
    parent: str | None
    engine: str | None
    model: str | None
    requests: Requests
    accuracy: Proportion | None
    agreement: Proportion | None
    difference: Difference | None
    difference_to_teacher: Difference | None
    allowance: float | None
    verdict: Verdict | None
    latency: dict[str, Summary]
    tokens_out_mean: float | None
    size_bytes: int | None
    requests_per_s: float | None
    cost: Cost
    break_even_requests: BreakEven | None
    golden: GoldenCheck | None
    by_length: list[LengthBucket]
    load: dict[str, Any]
    cached_prompt_share: dict[str, float | None]
    hardware: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """A stage's completed requests in seconds, sorted, for plots of the whole distribution."""

    ttft_response_s: tuple[float, ...]
    e2e_response_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """The stages in the config's order. `requests` is how many ids every number of quality is over."""

    rows: tuple[LedgerRow, ...]
    samples: Mapping[str, Sample]
    requests: int
    graded: int


def build_rows(config: LedgerConfig, folders: Mapping[str, PredictionFolder]) -> Rows:
    """Joins the stages and computes their rows; DataError when they cannot be compared."""
    joined = join(folders, teacher=config.teacher)
    costs = {stage.name: _cost(config, stage, folders) for stage in config.stages}
    rows = [_row(config, stage, folders[stage.name], joined, costs) for stage in config.stages]
    samples = {name: _sample(folder.predictions) for name, folder in folders.items()}
    return Rows(tuple(rows), samples, requests=len(joined.ids), graded=len(joined.graded))


def judge(found: Difference | None, *, allowance: float | None, rule: GateRule) -> Verdict | None:
    """Whether a stage kept to its allowance.

    `significant`: lost when the loss exceeds the allowance and the interval excludes zero; unclear when only
    the first holds. `non_inferior`: lost unless the whole interval lies above a loss of the allowance.
    """
    if found is None or allowance is None:
        return None
    if rule == "non_inferior":
        return "within" if non_inferior(found.paired, allowance) else "lost"
    if -found.paired.mean <= allowance:
        return "within"
    return "lost" if found.paired.interval.high < 0 else "unclear"


def _row(
    config: LedgerConfig,
    stage: StageConfig,
    folder: PredictionFolder,
    joined: Joined,
    costs: Mapping[str, Cost],
) -> LedgerRow:
    evaluation = folder.evaluation
    timings = [timing for p in folder.predictions if (timing := p.request_timing) is not None]
    cost, is_teacher = costs[stage.name], stage.name == config.teacher
    found = difference(joined, stage.name, parent=stage.parent, seed=config.seed) if stage.parent else None
    overall = None if is_teacher else difference(joined, stage.name, parent=config.teacher, seed=config.seed)
    tokens_out = [t.completion_tokens for t in timings if t.ok and t.completion_tokens is not None]
    return LedgerRow(
        stage=stage.name,
        parent=stage.parent,
        engine=evaluation.engine,
        model=evaluation.model.id,
        requests=_count(folder.predictions, missing=joined.missing[stage.name]),
        accuracy=accuracy(joined, stage.name),
        agreement=agreement(joined, stage.name),
        difference=found,
        difference_to_teacher=overall,
        allowance=stage.allowance,
        verdict=judge(found, allowance=stage.allowance, rule=config.gate_rule),
        latency=latency_summaries(timings),
        tokens_out_mean=sum(tokens_out) / len(tokens_out) if tokens_out else None,
        size_bytes=_size_on_disk(stage.artifact, evaluation),
        requests_per_s=evaluation.saturation.requests_per_s,
        cost=cost,
        break_even_requests=None if is_teacher else break_even_requests(cost, teacher=costs[config.teacher]),
        golden=_golden(evaluation),
        by_length=by_length(joined, stage.name),
        load=evaluation.load,
        cached_prompt_share={
            "replay": evaluation.tokens.cached_prompt_share,
            "burst": evaluation.saturation.cached_prompt_share,
        },
        hardware=evaluation.hardware,
    )


def _cost(config: LedgerConfig, stage: StageConfig, folders: Mapping[str, PredictionFolder]) -> Cost:
    teacher_price = folders[config.teacher].evaluation.prices.price_per_hour
    return stage_cost(
        folders[stage.name].evaluation,
        label_summary=stage.label_summary,
        trained=stage.trained,
        price_per_hour=config.price_per_hour,
        # Labels are made where the teacher is served.
        labeling_price_per_hour=config.price_per_hour if teacher_price is None else teacher_price,
        volume=config.volume,
    )


def _count(predictions: Sequence[Prediction], *, missing: int) -> Requests:
    errors = Counter(p.error.kind for p in predictions if p.error is not None)
    completed = sum(p.status == "done" for p in predictions)
    bad_rows = errors[BAD_ROW]
    return Requests(
        n=len(predictions),
        completed=completed,
        failed=len(predictions) - completed - bad_rows,
        bad_rows=bad_rows,
        missing=missing,
        errors={kind: n for kind, n in sorted(errors.items()) if n},
    )


def _sample(predictions: Sequence[Prediction]) -> Sample:
    timings = [timing for p in predictions if (timing := p.request_timing) is not None and timing.ok]
    return Sample(
        ttft_response_s=tuple(sorted(t.response_ttft_s for t in timings if t.response_ttft_s is not None)),
        e2e_response_s=tuple(sorted(t.response_s for t in timings if t.response_s is not None)),
    )


def _size_on_disk(artifact: Path | None, evaluation: Evaluation) -> int | None:
    """The bytes of weights that serving the stage needs; an adapter needs its base as well."""
    if artifact is None:
        return evaluation.model.size_bytes
    if artifact.is_file():
        return artifact.stat().st_size
    if not artifact.is_dir():
        raise ArtifactError(
            f"{artifact}: does not exist; name the folder or file that the stage was served from"
        )
    if has_manifest(artifact):
        manifest = read_manifest(artifact)
        return manifest.size_bytes + int(manifest.measurements.get("base_size_bytes") or 0)
    return sum(file.stat().st_size for file in artifact.rglob("*") if file.name.endswith(WEIGHT_SUFFIXES))


def _golden(evaluation: Evaluation) -> GoldenCheck | None:
    report = evaluation.model.golden
    if report is None or not report.checked:
        return None
    kinds = tuple(dict.fromkeys(found.kind for found in report.breaks))
    return GoldenCheck(report.checked, kinds, report.max_logprob_gap, report.flips)
