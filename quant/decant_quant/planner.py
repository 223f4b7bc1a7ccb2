"""`decant quantize MODEL --for ENGINE`: the cheapest artifact that the engine loads, that fits in memory, and
that loses no more than allowed. What was tried and why it was refused is written beside the artifact.
"""

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from decant.errors import ArtifactError, DecantError, ParityError, QuantizeError
from decant.files import write_json, write_text
from decant_quant.checkpoint import Checkpoint, open_checkpoint
from decant_quant.loss_check import Verdict, judge_heldout, judge_task
from decant_quant.making import Made, make_artifact, megabytes, prepare, refuse_output
from decant_quant.method import Prepared
from decant_quant.quality_page import QUALITY_JSON, quality_page
from decant_quant.quantize_config import CODED, QuantizeConfig, parse_bytes
from decant_quant.targets import (
    TARGETS,
    Candidate,
    Footprint,
    Target,
    candidates,
    context_of,
    footprint,
    largest_group,
)
from decant_quant.task_check import Answered, Serving, evaluate

_SMALL_BYTES = 64_000_000
_CANDIDATE = "candidate"
Status = Literal["taken", "refused", "not tried"]


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of one candidate. `step`: what refused it, the engine, memory, quantizing or the loss."""

    name: str
    status: Status
    step: str
    reason: str
    footprint: Footprint | None = None
    measured: dict[str, Any] = field(default_factory=dict[str, Any])

    def sentence(self) -> str:
        """One line of the report."""
        memory = f", {megabytes(self.footprint.total)} in memory" if self.footprint else ""
        return f"{self.name}{memory}: {self.status}, {self.reason}"


@dataclass(frozen=True, slots=True)
class _Option:
    """A candidate that may be tried: its checked run and what it would take in memory."""

    candidate: Candidate
    config: QuantizeConfig
    prepared: Prepared
    footprint: Footprint


class _Refusal(Exception):
    def __init__(self, step: str, reason: str, measured: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.step = step
        self.measured = measured or {}


def run_plan(config: QuantizeConfig, *, say: Callable[[str], None]) -> list[str]:
    """Tries the candidates, cheapest first, and returns the report; QuantizeError when none will do."""
    assert config.for_ is not None
    refuse_output(config)
    _refuse_unmeasurable(config)
    checkpoint = open_checkpoint(config.model)
    target = TARGETS[config.for_]
    options, tried = _sift(config, checkpoint, target)
    plan = _Plan(config, checkpoint, target)
    taken: Tried | None = None
    for option in options:
        if taken is not None:
            tried.append(
                Tried(option.candidate.name, "not tried", "", "a cheaper one will do", option.footprint)
            )
            continue
        say(f"plan: trying {option.candidate.name}, {megabytes(option.footprint.total)} in memory")
        outcome = plan.attempt(option)
        say(f"plan: {outcome.sentence()}")
        tried.append(outcome)
        taken = outcome if outcome.status == "taken" else None
    plan.write(tried)
    if taken is None:
        reasons = "; ".join(item.sentence() for item in tried)
        raise QuantizeError(f"no candidate for {config.for_} will do ({reasons}); allow more memory or loss")
    return [*(item.sentence() for item in tried), f"{config.output}: {taken.name}; report in {plan.folder}"]


def _refuse_unmeasurable(config: QuantizeConfig) -> None:
    """A loss cannot be bounded without rows to measure it on."""
    if config.max_loss is None:
        return
    held = config.calibration.dataset or config.calibration.heldout
    graded = config.evaluation.data is not None and config.max_loss.strip().endswith("pt")
    if not graded and held is None:
        raise QuantizeError(
            f"--max-loss {config.max_loss} needs rows: --set evaluation.data=FILE (answers known;"
            f" for pt) or --set calibration.dataset=FILE"
        )


def _sift(
    config: QuantizeConfig, checkpoint: Checkpoint, target: Target
) -> tuple[list[_Option], list[Tried]]:
    """Candidates by memory, least first, and those that are refused before any work."""
    options: list[_Option] = []
    refused: list[Tried] = []
    allowed = parse_bytes(config.fit) if config.fit else None
    assert config.for_ is not None
    for candidate in candidates(config.for_, config):
        reason = candidate.refusal(config.load.device)
        if reason is not None:
            refused.append(Tried(candidate.name, "refused", "engine", reason))
            continue
        chosen = _config_of(config, checkpoint, candidate)
        try:
            prepared = prepare(chosen)
        except DecantError as error:
            refused.append(Tried(candidate.name, "refused", "quantizing", str(error)))
            continue
        needed = footprint(target, checkpoint, config.load, weights=prepared.size_bytes)
        if allowed is not None and needed.total > allowed:
            refused.append(Tried(candidate.name, "refused", "memory", _too_big(needed, config), needed))
            continue
        options.append(_Option(candidate, chosen, prepared, needed))
    return sorted(options, key=lambda option: option.footprint.total), refused


def _too_big(needed: Footprint, config: QuantizeConfig) -> str:
    return (
        f"weights {megabytes(needed.weights)}, cache {megabytes(needed.cache)} for {config.load.concurrency}"
        f" requests at once and the engine {megabytes(needed.engine)} do not fit in {config.fit}"
    )


def _config_of(config: QuantizeConfig, checkpoint: Checkpoint, candidate: Candidate) -> QuantizeConfig:
    """The options of one candidate's run; its grid where the user named none."""
    gptq = {**candidate.gptq}
    if candidate.gptq and "group_size" not in config.gptq.model_fields_set:
        heads = checkpoint.integer("num_attention_heads")
        head = checkpoint.integer("head_dim", default=checkpoint.integer("hidden_size") // heads)
        sides = [checkpoint.integer("hidden_size"), checkpoint.integer("intermediate_size"), heads * head]
        gptq["group_size"] = largest_group(sides) or -1
    return config.model_copy(
        update={
            "method": candidate.method,
            "gptq": config.gptq.with_changes(**gptq),
            "recover": config.recover and candidate.method in CODED,
        }
    )


class _Plan:
    """The trying of candidates; the unquantized model is asked once, when the first of them is there."""

    def __init__(self, config: QuantizeConfig, checkpoint: Checkpoint, target: Target) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._target = target
        output = config.output.absolute()
        self.folder = output.parent / f"{output.name}.plan"
        self._before: Answered | None = None
        self._reports: list[dict[str, Any]] = []

    def attempt(self, option: _Option) -> Tried:
        """Makes one artifact, measures it, and puts it in place or removes it."""
        # Named as the artifact will be: its manifest says so, and it is served under that name.
        aside = self.folder / _CANDIDATE / self._config.output.absolute().name
        shutil.rmtree(aside, ignore_errors=True)
        name = option.candidate.name
        try:
            made, verdict, measured = self._measured(option, aside)
        except _Refusal as refusal:
            self._keep_report(aside)
            shutil.rmtree(aside, ignore_errors=True)
            return Tried(name, "refused", refusal.step, str(refusal), option.footprint, refusal.measured)
        self._keep_report(aside)
        if not verdict.accepted:
            shutil.rmtree(aside)
            return Tried(name, "refused", "loss", verdict.reason, option.footprint, measured)
        _put_in_place(aside, self._config.output)
        size = {"size_bytes": made.manifest.size_bytes}
        return Tried(name, "taken", "", verdict.reason, option.footprint, {**size, **measured})

    def write(self, tried: list[Tried]) -> None:
        """The report: plan.json, and plan.html where held-out rows were measured."""
        config = self._config
        content = {
            "engine": config.for_,
            "fit": config.fit,
            "max_loss": config.max_loss,
            "load": {**config.load.model_dump(), "context": context_of(self._checkpoint, config.load)},
            "engine_overhead": self._target.overhead_source,
            "tried": [asdict(item) for item in tried],
        }
        write_json(self.folder / "plan.json", content)
        shutil.rmtree(self.folder / _CANDIDATE, ignore_errors=True)
        if self._reports:
            write_text(self.folder / "plan.html", quality_page(self._reports))

    def _measured(self, option: _Option, aside: Path) -> tuple[Made, Verdict, dict[str, Any]]:
        try:
            made = make_artifact(option.config.model_copy(update={"output": aside}), option.prepared)
        except (QuantizeError, ParityError, ArtifactError) as error:
            raise _Refusal("quantizing", str(error)) from None
        measured: dict[str, Any] = {"quantize_s": round(made.wall_s, 2)}
        quality = made.written.measurements.get("quality")
        if quality is not None:
            measured["heldout"] = quality
        if self._config.evaluation.data is None or (self._config.max_loss or "pt").strip().endswith("nats"):
            return made, judge_heldout(quality, self._config.max_loss), measured
        verdict, found = self._task(option, aside)
        measured["task"] = found
        self._refuse_memory(found["peak_memory_bytes"], measured)
        return made, verdict, measured

    def _task(self, option: _Option, aside: Path) -> tuple[Verdict, dict[str, Any]]:
        """The paired accuracy, of the artifact itself or, without its engine here, of restored weights."""
        served, engine, memory_counts = aside, self._engine(), True
        if engine is None and not option.candidate.method.startswith("hf:"):
            served = self.folder / "restored"
            shutil.rmtree(served, ignore_errors=True)
            restoring = QuantizeConfig(model=aside, output=served, method="dequantize:F16")
            make_artifact(restoring)
            memory_counts = False
        try:
            after = self._evaluate(served, engine or "transformers", stage=option.candidate.name)
        except DecantError as error:
            raise _Refusal("engine", str(error)) from None
        finally:
            if served != aside:
                shutil.rmtree(served, ignore_errors=True)
        verdict = judge_task(self._unquantized(), after, self._config.max_loss)
        found = {
            **verdict.numbers,
            "served_with": engine
            or "transformers, with the same weights: vLLM is not here (--engine-python)",
            "peak_memory_bytes": after.peak_bytes if memory_counts and engine is not None else None,
            "latency": after.latency,
        }
        return verdict, found

    def _refuse_memory(self, peak_bytes: int | None, measured: dict[str, Any]) -> None:
        fit = self._config.fit
        if (
            fit is None
            or peak_bytes is None
            or self._config.load.device != "cpu"
            or peak_bytes <= parse_bytes(fit)
        ):
            return
        raise _Refusal("memory", f"took {megabytes(peak_bytes)} while it answered, more than {fit}", measured)

    def _unquantized(self) -> Answered:
        if self._before is None:
            self._before = self._evaluate(self._config.model, "transformers", stage="unquantized")
        return self._before

    def _evaluate(self, model: Path, engine: str, *, stage: str) -> Answered:
        context = context_of(self._checkpoint, self._config.load)
        weights = sum(file.stat().st_size for file in model.iterdir() if file.is_file())
        threads = 1 if weights < _SMALL_BYTES else None
        python = self._config.engine_python if engine == "vllm" else None
        serving = Serving(engine, context, self._config.load.concurrency, threads, python)
        output = self.folder / stage.replace(":", "-").replace(", ", "-").replace(" ", "-")
        return evaluate(model, output, self._config.evaluation, serving)

    def _engine(self) -> str | None:
        """The engine as `decant serve` calls it; None for vLLM where no interpreter with it is known."""
        here = importlib.util.find_spec("vllm") is not None
        if self._config.for_ == "vllm" and not here and self._config.engine_python is None:
            return None
        return self._config.for_

    def _keep_report(self, aside: Path) -> None:
        file = aside / QUALITY_JSON
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if "heldout" in report:
            self._reports.append(report)


def _put_in_place(aside: Path, output: Path) -> None:
    """An older artifact is there until the new one is."""
    older = output.with_name(f".{output.name}.older")
    shutil.rmtree(older, ignore_errors=True)
    if output.is_dir():
        output.rename(older)
    aside.rename(output)
    shutil.rmtree(older, ignore_errors=True)
