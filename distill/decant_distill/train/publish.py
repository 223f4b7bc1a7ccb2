"""The trained student as an artifact: weights, tokenizer, chat template, manifest with golden prompts."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decant.artifact import write_manifest
from decant.files import folder_aside
from decant.golden import GoldenSet
from decant_distill.train.config import TrainConfig
from decant_distill.train.student import pissa_start, tidy_generation


def publish_student(
    model: Any,
    tokenizer: Any,
    *,
    config: TrainConfig,
    base_sha256: str,
    golden: GoldenSet,
    training: dict[str, Any],
    beside: Mapping[str, str] | None = None,
) -> None:
    """Writes the student as an artifact, whole or not at all: an adapter, or a model if all weights learned.

    `beside` holds further texts by file name. An adapter's manifest says where its base is, from the root and
    seen from the adapter, and its hash.
    """
    adapter = config.method != "full"
    with folder_aside(config.output) as folder:
        if adapter:
            save_adapter(model, folder, config=config)
            # A template of a model card, filled with nothing but this machine's paths.
            (folder / "README.md").unlink(missing_ok=True)
        else:
            tidy_generation(model, tokenizer)
            model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        for file_name, text in (beside or {}).items():
            (folder / file_name).write_text(text, encoding="utf-8")
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors are written for their owner alone
        write_manifest(
            folder,
            name=config.output.name,
            kind="adapter" if adapter else "hf",
            method=config.method,
            parent=config.base,
            golden=golden,
            details={
                "base": str(config.base.absolute()) if adapter else None,
                "base_sha256": base_sha256,
                "recipe": config.model_dump(mode="json"),
                "training": training,
                "measurements": _base_measurements(config) if adapter else {},
            },
        )


def save_adapter(model: Any, folder: Path, *, config: TrainConfig) -> None:
    """Writes the adapter as one for the base as it lies on the disk: PiSSA's becomes a plain LoRA."""
    if config.adapter != "pissa":
        model.save_pretrained(str(folder), save_embedding_layers=False)
        return
    # It learns over a base that lost the adapter's first value: the difference to that is what counts. PEFT
    # loads the first value as a second adapter to take it, and then warns of what it does itself.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PiSSA changes the base weights")
        model.save_pretrained(
            str(folder),
            save_embedding_layers=False,
            path_initial_model_for_weight_conversion=str(pissa_start(config)),
        )


def _base_measurements(config: TrainConfig) -> dict[str, Any]:
    """What an adapter cannot do without: its base's size, and where it lies seen from the adapter."""
    size_bytes = sum(path.stat().st_size for path in config.base.glob("*.safetensors"))
    return {
        "base_size_bytes": size_bytes,
        "base_relative": os.path.relpath(config.base.absolute(), config.output.absolute()),
    }
