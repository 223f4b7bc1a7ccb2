"""A run that is killed three times beside one that is not: `python -m training.resume`. About two minutes.

QLoRA with dropout, a batch ramp and held-out rows judged on the way. SIGKILL comes at moments drawn by the
seed, wherever the run is then; the same command goes on. Prints a Markdown table and whether the weights are
equal bit for bit.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from decant.artifact import read_manifest
from decant.files import sha256_file, write_text
from decant_distill.train.config import TrainConfig
from training.counter_rows import make_rows
from training.runs import settings, train

_WEIGHTS = "adapter_model.safetensors"


def whole_steps(config: TrainConfig) -> int:
    """The newest whole checkpoint's step."""
    folder = config.output.parent / f"{config.output.name}.checkpoints"
    whole = folder.glob("checkpoint-*/progress.json")
    return max((int(path.parent.name.rpartition("-")[2]) for path in whole), default=0)


def killed_after(config: TrainConfig, *, steps: int, pause_s: float) -> int:
    """Starts the run and kills it `pause_s` after the checkpoint of so many steps; the newest one then."""
    file = config.output.with_suffix(".json")
    write_text(file, config.model_dump_json())
    command = [sys.executable, "-m", "decant", "train", "--config", str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while whole_steps(config) < steps:
            if child.poll() is not None:
                raise SystemExit(f"{config.output}: ended before it could be killed; raise --tokens")
            time.sleep(0.005)
        time.sleep(pause_s)
        child.kill()
    return whole_steps(config)


def main() -> None:
    """Runs both and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, dev = make_rows(folder, count=2000, seed=given.seed, dev_count=50)
        whole = _config(data, dev, folder / "whole", given)
        steps = int(train(whole)["steps"])
        broken = whole.with_changes(output=folder / "broken")
        print("| SIGKILL | newest checkpoint then |\n|---|---|", flush=True)
        for number in range(given.kills):
            least = round((number + 1) * steps / (given.kills + 2))
            saved = killed_after(broken, steps=least, pause_s=rng.uniform(0, 0.5))
            print(f"| {number + 1} | step {saved} of {steps} |", flush=True)
        record = train(broken)
        hashes = [sha256_file(config.output / _WEIGHTS) for config in (whole, broken)]
        same_curve = record["loss_curve"] == (read_manifest(whole.output).training or {})["loss_curve"]
        print(
            f"\nResumed {record['resumed']} times. Weights: {hashes[0][:16]} and {hashes[1][:16]}:", end=" "
        )
        print("equal bit for bit." if hashes[0] == hashes[1] else "NOT equal.", end=" ")
        print(f"Loss of every step {'equal' if same_curve else 'NOT equal'}.")
        if hashes[0] != hashes[1] or not same_curve:
            raise SystemExit(1)


def _config(data: Path, dev: Path, output: Path, given: argparse.Namespace) -> TrainConfig:
    changes: dict[str, Any] = {
        "token_budget": given.tokens,
        "lora_dropout": 0.1,
        "batch_ramp": 4,
        "dev_data": dev,
        "eval_every_steps": 20,
        "save_every_steps": 7,
        "seed": given.seed,
    }
    return settings(data, output, **changes)


if __name__ == "__main__":
    main()
