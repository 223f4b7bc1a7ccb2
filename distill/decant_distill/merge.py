"""`decant merge`: folds an adapter into its base and refuses one that no longer says what the student said.

An adapter trained over NF4 learned to correct the rounding of the weights it saw. Added to the unrounded
base it may correct what is not there (peft issue 2321), so both sums are made. The golden prompts choose, or
held-out rows where there are some: then the adapter as it was trained is the third route, and a merged model
that is worse than it is refused.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from decant.artifact import MANIFEST, Manifest, verify_files, write_manifest
from decant.config import Config, InputPath, OptionalInputPath, OutputPath
from decant.errors import ArtifactError
from decant.files import folder_aside, sha256_path
from decant.golden import TOLERANCES, GoldenReport, GoldenSet, compare
from decant_distill.merge_dev import DevRows, DevVerdict, judge, load_dev_rows
from decant_distill.train.dev_scores import DevScore, score
from decant_distill.train.failures import explained
from decant_distill.train.observe import as_observation, record_golden
from decant_distill.train.student import (
    check_dtype,
    load_adapter,
    load_base,
    load_tokenizer,
    nf4_layers,
    require_training_stack,
    tidy_generation,
)

Route = Literal["base", "dequantized"]

_NOT_TOKENIZER = (".safetensors", ".bin", "adapter_config.json", MANIFEST)


class MergeConfig(Config):
    """An adapter and the model it becomes."""

    positional: ClassVar[tuple[str, ...]] = ("adapter",)

    adapter: InputPath = Field(description="adapter folder made by decant train")
    output: OutputPath = Field(description="folder for the merged model")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="type of the weights"
    )
    base: OptionalInputPath = Field(default=None, description="where the base lies now, if not where it was")
    dev: OptionalInputPath = Field(
        default=None, description="held-out curated rows; the routes are scored on them, and they choose"
    )
    dev_rows: int = Field(default=400, ge=1, description="most held-out rows that are scored")
    max_dev_loss: float = Field(
        default=0.02,
        ge=0,
        description="how much higher than the adapter's the merged model's loss on them may be, in nats",
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads, torch's choice if not set")


CONFIG = MergeConfig


@dataclass(frozen=True, slots=True)
class _Merged:
    """One route's model, what it says to the golden prompts, and how that compares with the adapter."""

    route: Route
    model: Any
    golden: GoldenSet
    report: GoldenReport
    dev: DevScore | None


def run(config: MergeConfig) -> None:
    """Merges along the best route; ParityError when none keeps golden prompts and held-out quality."""
    manifest = verify_files(config.adapter)
    _require_adapter(config.adapter, manifest)
    base = find_base(config.adapter, manifest, given=config.base)
    check_dtype(base, config.dtype)
    require_training_stack(quantized=manifest.method == "qlora")
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tokenizer = load_tokenizer(config.adapter)
    with explained(config.output.absolute().parent):
        rows = None
        if config.dev is not None:
            rows = load_dev_rows(
                config.dev, base=base, tokenizer=tokenizer, recipe=manifest.recipe, most=config.dev_rows
            )
        unmerged = None if rows is None else _score_adapter(rows, base, config=config, manifest=manifest)
        tried: list[_Merged] = []
        for route in _routes(manifest):
            tried.append(_merge(route, base, rows, config=config, manifest=manifest))
            tried = _only_best_in_memory(tried)
        best = min(tried, key=_rank)
        best.report.raise_if_broken()
        verdict = None
        if unmerged is not None and best.dev is not None:
            verdict = judge(unmerged, best.dev, most_loss=config.max_dev_loss)
            verdict.raise_if_worse(config.adapter, route=best.route)
        _publish(config, best, _report(best, tried, unmerged, verdict))
    print(_summary(config.output, best, tried, unmerged))


def find_base(adapter: Path, manifest: Manifest, *, given: Path | None = None) -> Path:
    """The folder of an adapter's base: where it was, or as far from the adapter as it was if both were moved.

    ArtifactError when it is in neither place, or is not the model that the adapter was trained over.
    """
    if manifest.base is None:
        raise ArtifactError(f"{adapter}: its manifest names no base; train it again")
    moved = adapter.absolute() / str(manifest.measurements.get("base_relative", "."))
    places = [given] if given is not None else [Path(manifest.base), moved.resolve()]
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None:
        missing = " nor at ".join(str(place) for place in places)
        raise ArtifactError(f"{adapter}: its base is not at {missing}; put it back or say --base FOLDER")
    if sha256_path(found) != manifest.base_sha256:
        raise ArtifactError(f"{found}: differs from the base {adapter} was trained over; restore its files")
    return found


def _require_adapter(folder: Path, manifest: Manifest) -> None:
    if manifest.kind != "adapter":
        raise ArtifactError(f"{folder}: is no adapter but a model of kind {manifest.kind}; use it as it is")
    if manifest.golden is None:
        raise ArtifactError(f"{folder}: has no golden prompts to check the merge with; train it again")


def _routes(manifest: Manifest) -> Iterator[Route]:
    yield "base"
    if manifest.method == "qlora":
        yield "dequantized"


def _rank(merged: _Merged) -> tuple[bool, float]:
    gap = merged.report.mean_logprob_gap if merged.dev is None else merged.dev.loss
    return not merged.report.ok, gap


def _only_best_in_memory(tried: Sequence[_Merged]) -> list[_Merged]:
    best = min(tried, key=_rank)
    return [merged if merged is best else replace(merged, model=None) for merged in tried]


def _score_adapter(rows: DevRows, base: Path, *, config: MergeConfig, manifest: Manifest) -> DevScore:
    """The adapter as it was trained: over the base in the numbers that it learned over."""
    dtype = manifest.recipe["compute_dtype"]
    return _score(load_adapter(config.adapter, base, dtype=dtype, nf4=manifest.method == "qlora"), rows)


def _score(model: Any, rows: DevRows) -> DevScore:
    return score(model, rows.tokenizer, rows.lessons, rows.examples, objective=rows.objective, task=rows.task)


def _merge(
    route: Route, base: Path, rows: DevRows | None, *, config: MergeConfig, manifest: Manifest
) -> _Merged:
    """The model of one route, how far its words are from the adapter's, and its score on held-out rows."""
    assert manifest.golden is not None
    tokenizer = load_tokenizer(config.adapter)
    model = _sum(route, base, config=config, manifest=manifest)
    tidy_generation(model, tokenizer)
    conversations = [prompt.messages for prompt in manifest.golden.prompts]
    seen = record_golden(
        model, tokenizer, conversations, stage="merged", max_tokens=manifest.golden.max_tokens
    )
    observations = [as_observation(prompt) for prompt in seen.prompts]
    report = compare(manifest.golden, observations, stage="merged", tolerance=TOLERANCES["bf16"])
    dev = None if rows is None else _score(model, rows)
    return _Merged(route=route, model=model, golden=seen, report=report, dev=dev)


def _sum(route: Route, base: Path, *, config: MergeConfig, manifest: Manifest) -> Any:
    """The sum along one route, computed in float32 and rounded once."""
    import torch
    from peft import PeftModel

    model = load_base(base, dtype="float32", nf4=False)
    if route == "dequantized":
        _replace_by_dequantized(model, base, compute_dtype=manifest.recipe["compute_dtype"])
    loader: Any = PeftModel
    merged = loader.from_pretrained(model, str(config.adapter.absolute())).merge_and_unload(safe_merge=True)
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    return merged.to(dtypes[config.dtype])


def _replace_by_dequantized(model: Any, base: Path, *, compute_dtype: Literal["bfloat16", "float32"]) -> None:
    """Gives every linear layer that training saw in NF4 the values that it saw."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    quantized = load_base(base, dtype=compute_dtype, nf4=True)
    with torch.no_grad():
        for name, layer in nf4_layers(quantized).items():
            seen = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            model.get_submodule(name).weight.copy_(seen)


def _report(
    best: _Merged, tried: Sequence[_Merged], unmerged: DevScore | None, verdict: DevVerdict | None
) -> dict[str, Any]:
    """What the manifest says of the merge."""
    report: dict[str, Any] = {
        "route": best.route,
        "routes": {merged.route: merged.report.model_dump(mode="json") for merged in tried},
    }
    if unmerged is not None and verdict is not None:
        scores = {"unmerged": unmerged, **{m.route: m.dev for m in tried if m.dev is not None}}
        report["dev"] = {
            "rows": len(unmerged.correct),
            "routes": {name: {"loss": s.loss, "accuracy": s.accuracy} for name, s in scores.items()},
            "change": verdict.to_dict(),
        }
    return report


def _publish(config: MergeConfig, best: _Merged, report: Mapping[str, Any]) -> None:
    with folder_aside(config.output) as folder:
        best.model.save_pretrained(str(folder))
        for path in sorted(config.adapter.iterdir()):
            if path.is_file() and not path.name.endswith(_NOT_TOKENIZER):
                shutil.copyfile(path, folder / path.name)
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors are written for their owner alone
        write_manifest(
            folder,
            name=config.output.name,
            kind="hf",
            method="merged",
            parent=config.adapter,
            golden=best.golden,
            details={
                "recipe": config.model_dump(mode="json"),
                "measurements": {"merge": {"dtype": config.dtype, **report}},
            },
        )


def _summary(output: Path, best: _Merged, tried: Sequence[_Merged], unmerged: DevScore | None) -> str:
    gaps = ", ".join(
        f"{merged.route} {merged.report.mean_logprob_gap:.4f} mean, {merged.report.max_logprob_gap:.3f} most"
        f"{'' if merged.report.ok else ' (broken)'}"
        for merged in tried
    )
    said = f"{output}: merged over the {best.route} weights; golden gap in nats: {gaps}"
    if unmerged is None:
        return said
    scores = [("unmerged", unmerged), *((m.route, m.dev) for m in tried if m.dev is not None)]
    dev = ", ".join(f"{name} loss {s.loss:.4f}, {100 * s.accuracy:.1f} % right" for name, s in scores)
    return f"{said}; on {len(unmerged.correct)} held-out rows: {dev}"
