"""Students from 25, 50 and 100 % of a teacher's labels, the baseline from the same labels, and the teacher.

`python -m training.sections_curve FOLDER TEST` goes on from a finished sections recipe (`decant run
distill/recipes/sections.toml`): FOLDER is its workdir, TEST its test file. Every student spends `--tokens`
tokens and all answer the same requests. With the default about seven minutes on one core; killed, the same
command goes on.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from decant.artifact import read_manifest
from decant.files import write_jsonl, write_text
from decant.stats import paired_difference, wilson

SHARES = (0.25, 0.5, 1.0)


def outcomes_of(predictions: Path, ids: Sequence[str]) -> list[float]:
    """1 for a right answer and else 0, in the order of the ids."""
    lines = (json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines())
    right = {line["id"]: float(line["correct"]) for line in lines}
    return [right[name] for name in ids]


def verb(name: str, config: dict[str, Any], file: Path) -> None:
    """One verb of Decant in a process of its own."""
    write_text(file, json.dumps(config))
    subprocess.run([sys.executable, "-m", "decant", name, "--config", str(file)], check=True)


def curve(given: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> list[list[float]]:
    """The outcomes of the student of each share on the rows with their gold."""
    gold = given.workdir / "gold.jsonl"
    write_jsonl(gold, ({"prompt": row["text"], "answer": row["label"]} for row in rows))
    recipe = dict(read_manifest(given.sections / "student").recipe or {})
    settings = {
        **recipe,
        "output": str(given.workdir / "curve"),
        "shares": SHARES,
        "token_budget": given.tokens,
        "dev_share": 0.0,
        "dev_data": str(gold),
        "dev_rows": len(rows),
        "dev_metric": "accuracy",
        "eval_every_steps": 10**9,
    }
    done = given.workdir / "curve" / "learning-curve.json"
    if not done.is_file():
        verb("learning-curve", settings, given.workdir / "learning-curve.json")
    return [point["outcomes"] for point in json.loads(done.read_bytes())["points"]]


def baseline(given: argparse.Namespace, share: float, ids: Sequence[str]) -> list[float]:
    """The outcomes of TF-IDF and logistic regression on the labels that the share's student had."""
    output = given.workdir / f"baseline-{share:g}"
    if not (output / "predictions.jsonl").is_file():
        settings = {
            "train": str(given.workdir / "curve" / f"labels-{share:g}.jsonl"),
            "data": str(given.test),
            "output": str(output),
            "limit": len(ids),
            "task": {"prompt": "{text}", "gold_field": "label"},
        }
        verb("baseline", settings, given.workdir / "baseline.json")
    return outcomes_of(output / "predictions.jsonl", ids)


def table(
    students: Sequence[list[float]], baselines: Sequence[list[float]], teacher: list[float]
) -> list[str]:
    """Lines of Markdown: accuracies, and the student's paired differences to the others, in points."""
    lines = [
        "| labels | student | baseline | student − baseline | student − teacher | gain |",
        "|---|---|---|---|---|---|",
    ]
    for number, (share, own, plain) in enumerate(zip(SHARES, students, baselines, strict=True)):
        gain = _difference(students[number - 1], own) if number else "–"
        cells = (
            f"{share:.0%}",
            _accuracy(own),
            _accuracy(plain),
            _difference(plain, own),
            _difference(teacher, own),
        )
        lines.append(f"| {' | '.join((*cells, gain))} |")
    return [
        *lines,
        "",
        f"Teacher: {_accuracy(teacher)}. n is {len(teacher)} requests; gain: over the share before.",
    ]


def _accuracy(outcomes: Sequence[float]) -> str:
    interval = wilson(round(sum(outcomes)), len(outcomes))
    mean = sum(outcomes) / len(outcomes)
    return f"{100 * mean:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _difference(before: Sequence[float], after: Sequence[float]) -> str:
    found = paired_difference(before, after, seed=0)
    low, high = 100 * found.interval.low, 100 * found.interval.high
    return f"{100 * found.mean:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", type=Path, help="workdir of a finished sections recipe")
    parser.add_argument("test", type=Path, help="its test file")
    parser.add_argument("--workdir", type=Path, default=Path("runs/sections-curve"))
    parser.add_argument("--tokens", type=int, default=3_000_000, help="tokens that each student spends")
    given = parser.parse_args()
    given.workdir.mkdir(parents=True, exist_ok=True)
    count = json.loads((given.sections / "eval" / "teacher" / "eval.json").read_bytes())["n"]
    with given.test.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, count)]
    ids = [row["id"] for row in rows]
    students = curve(given, rows)
    baselines = [baseline(given, share, ids) for share in SHARES]
    teacher = outcomes_of(given.sections / "eval" / "teacher" / "predictions.jsonl", ids)
    print("\n".join(table(students, baselines, teacher)))


if __name__ == "__main__":
    main()
