"""Running the verbs as a person would, each in a process of its own, and skipping what is done."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.cells import Cell
from decant.artifact import read_manifest
from decant.errors import StageError
from decant.files import sha256_file, sha256_path, write_json
from decant.processes import end_with_parent

_LABELS = Path(__file__).parent / "labels.toml"


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where an experiment works, and its tables of settings: `train`, `merge` and `scores`."""

    folder: Path
    settings: Mapping[str, Mapping[str, Any]]
    max_tokens: int

    def world(self, name: str) -> Path:
        """The folder of a world's problems, labels and curated rows."""
        return self.folder / name


def prepare_world(workshop: Workshop, world: str, *, changes: Sequence[str]) -> None:
    """Problems, labels and curated rows of a world; what is done is skipped by the recipe's own rules."""
    folder = workshop.world(world)
    asked = [f"world.name={world}", *changes, f"task.max_tokens={workshop.max_tokens}"]
    sets = [argument for change in asked for argument in ("--set", change)]
    command = [sys.executable, "-m", "decant", "run", str(_LABELS), "--set", f"workdir={folder}", *sets]
    if subprocess.run(command, preexec_fn=end_with_parent(), check=False).returncode:
        raise StageError(f"the labels of {world} could not be made; the same command goes on from there")


def run_cell(workshop: Workshop, cell: Cell) -> Path:
    """Trains, merges and scores one student; returns the file with its outcome, made anew only if need be."""
    folder = workshop.folder / "cells" / cell.name
    outcome = folder / "cell.json"
    world = workshop.world(cell.world)
    train, merge = _configs(workshop, cell, folder)
    test = world / "problems" / "test.jsonl"
    identity = {
        "train": {key: value for key, value in train.items() if key != "output"},
        "merge": dict(workshop.settings["merge"]),
        "base": sha256_path(Path(train["base"])),
        "data": sha256_file(Path(train["data"])),
        "test": sha256_file(test),
        **({"scores": sha256_path(Path(train["teacher_scores"]))} if cell.arm.scores else {}),
        "max_tokens": workshop.max_tokens,
    }
    if outcome.is_file() and json.loads(outcome.read_bytes())["identity"] == identity:
        return outcome
    _remove_unfinished(folder, identity)
    started_s = time.monotonic()
    _verb("train", train, folder)
    _verb("merge", merge, folder)
    predictions = folder / "predictions.jsonl"
    asked = {"model": merge["output"], "data": test, "output": predictions, "max-tokens": workshop.max_tokens}
    asked["votes"] = cell.arm.votes
    flags = [text for name, value in asked.items() for text in (f"--{name}", str(value))]
    _child([sys.executable, "-m", "ablation.answer", *flags], folder / "answer.log")
    write_json(
        outcome,
        {
            "identity": identity,
            "wall_s": round(time.monotonic() - started_s, 1),
            "training": read_manifest(folder / "student").training,
            "merge": read_manifest(folder / "merged").measurements["merge"],
        },
    )
    return outcome


def _configs(workshop: Workshop, cell: Cell, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    train = {
        **workshop.settings["train"],
        "data": str(workshop.world(cell.world) / cell.arm.rows / "train.jsonl"),
        "output": str(folder / "student"),
        "placement": cell.arm.placement,
        "seed": cell.seed,
    }
    if cell.arm.scores is not None:
        train["teacher_scores"] = str(workshop.world(cell.world) / cell.arm.scores)
        train["teacher_weight"] = workshop.settings["scores"]["teacher_weight"]
    merge = {**workshop.settings["merge"], "adapter": train["output"], "output": str(folder / "merged")}
    return train, merge


def _remove_unfinished(folder: Path, identity: Mapping[str, Any]) -> None:
    """Keeps the checkpoints of this very run, and nothing that was made with other settings."""
    claim = folder / "identity.json"
    if claim.is_file() and json.loads(claim.read_bytes()) != identity:
        shutil.rmtree(folder)
    write_json(claim, identity)


def _verb(name: str, config: Mapping[str, Any], folder: Path) -> None:
    """One verb, unless it has left its artifact already; what is there belongs to this run."""
    if (Path(config["output"]) / "manifest.json").is_file():
        return
    file = folder / f"{name}.json"
    write_json(file, config)
    _child([sys.executable, "-m", "decant", name, "--config", str(file)], folder / f"{name}.log")


def _child(command: list[str], log: Path) -> None:
    # One thread from the start: torch and tokenizers read these before any setting of ours.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as written:
        code = subprocess.run(
            command,
            env=environment,
            stdout=written,
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent(),
            check=False,
        ).returncode
    if code:
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        raise StageError(f"{log}: ended with code {code}: {last}")
