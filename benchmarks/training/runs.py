"""One `decant train` in a process of its own, and what its manifest says of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from decant.artifact import read_manifest
from decant.files import write_text
from decant_distill.train.config import TrainConfig
from training.counter_rows import BASE


def settings(data: Path, output: Path, **changes: Any) -> TrainConfig:
    """QLoRA on the bundled student as the demonstration trains it, with changes."""
    usual: dict[str, Any] = {
        "batch_tokens": 1024,
        "learning_rate": 3e-3,
        "lora_r": 64,
        "lora_alpha": 128,
        "compute_dtype": "float32",
        "golden_rows": 1,
        "threads": 1,
    }
    return TrainConfig(base=BASE, data=data, output=output, **{**usual, **changes})


def train(config: TrainConfig) -> dict[str, Any]:
    """Runs it unless its artifact is there already; returns the manifest's record of the training."""
    if not (config.output / "manifest.json").is_file():
        file = config.output.with_suffix(".json")
        write_text(file, config.model_dump_json())
        command = [sys.executable, "-m", "decant", "train", "--config", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return dict(read_manifest(config.output).training or {})
