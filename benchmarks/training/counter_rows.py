"""Rows of the counter world with their true reasoning, for runs that measure training and not labels."""

import json
import subprocess
import sys
from pathlib import Path

from decant.files import write_jsonl

BASE = Path("distill/decant_distill/demo/weights/student-base")


def make_rows(folder: Path, *, count: int, seed: int = 0, dev_count: int = 300) -> tuple[Path, Path]:
    """Writes train.jsonl and dev.jsonl in the form that `decant train` reads, and returns their paths."""
    settings = {"train-count": count, "dev-count": dev_count, "test-count": 1, "seed": seed}
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    problems = folder / "problems"
    command = [sys.executable, "-m", "decant", "problems", "--output-folder", str(problems), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for split in ("train", "dev"):
        lines = (problems / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = (json.loads(line) for line in lines)
        write_jsonl(
            folder / f"{split}.jsonl",
            ({"prompt": r["prompt"], "reasoning": r["reasoning"], "answer": r["gold"]} for r in rows),
        )
    return folder / "train.jsonl", folder / "dev.jsonl"
