"""What settings cost in time, side by side: `python -m training.speed`; stops by itself after `--limit-s`.

Two pairs, repeated in turn in one process: length bucketing against padding on rows of mixed length, in as
many steps over as many tokens, and spike detection with its ring of checkpoints against neither. Tokens per
second and CPU seconds cover the steps from first to last, checkpoints too; loss is that on held-out rows.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from decant.files import write_jsonl
from decant_distill.train.config import TrainConfig
from training.counter_rows import make_rows
from training.runs import settings

PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "length bucketing / padding": ({"length_bucketing": True}, {"length_bucketing": False}),
    "detection and ring / neither": (
        {"spike_rewind": True, "save_every_steps": 100},
        {"spike_rewind": False, "save_every_steps": 10**6},
    ),
}
_DEV_ROWS = 100


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its real tokens, how long it took by clock and processor, and what it had learned."""

    tokens: int
    steps: int
    wall_s: float
    cpu_s: float
    dev_loss: float


def mixed_lengths(data: Path, target: Path, *, most: int, seed: int) -> Path:
    """Rows of one to `most` problems each, few of them long, as instruction data has them."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    rng = random.Random(seed)
    mixed: list[dict[str, Any]] = []
    while len(rows) >= most:
        size = min(most, 1 + int(rng.expovariate(0.8)))
        part, rows = rows[:size], rows[size:]
        prompt, reasoning = (" ".join(str(row[name]) for row in part) for name in ("prompt", "reasoning"))
        mixed.append({"prompt": prompt, "reasoning": reasoning, "answer": part[-1]["answer"]})
    write_jsonl(target, mixed)
    return target


def as_many_steps(config: TrainConfig, steps: int) -> TrainConfig:
    """The settings with batches so large that padding leaves as many real tokens in each."""
    from decant_distill.train.course import plan_course
    from decant_distill.train.student import load_tokenizer

    tokenizer = load_tokenizer(config.base)
    for _ in range(6):
        found = plan_course(config, tokenizer).plan().steps
        if found == steps:
            break
        config = config.with_changes(batch_tokens=round(config.batch_tokens * found / steps))
    return config


def measure(config: TrainConfig) -> Run:
    """Trains in this process as `decant train` does."""
    from decant_distill.train.checkpoints import Checkpoints
    from decant_distill.train.course import plan_course
    from decant_distill.train.dev_scores import mean_loss
    from decant_distill.train.loop import fit
    from decant_distill.train.objective import objective_of
    from decant_distill.train.student import build_student, load_tokenizer
    from decant_distill.train.watch import Surroundings

    course = plan_course(config, load_tokenizer(config.base))
    model, objective = build_student(config), objective_of(config)
    held_out, learned = course.examples[:_DEV_ROWS], course.examples[_DEV_ROWS:]
    around = Surroundings.quiet(config, Checkpoints.beside(config.output))
    cpu_s, wall_s = time.process_time(), time.monotonic()
    course = replace(course, examples=learned, lessons=course.lessons[_DEV_ROWS:])
    outcome = fit(model, learned, course.plan, objective=objective, around=around)
    cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
    return Run(
        outcome.plan.total_tokens, outcome.plan.steps, wall_s, cpu_s, mean_loss(model, held_out, objective)
    )


def line(name: str, runs: tuple[list[Run], list[Run]]) -> str:
    """The pair so far: medians of its sides, and of the ratios of what was measured next to each other."""
    cells = [name, str(len(runs[1]))]
    for side in runs:
        speeds = [run.tokens / run.wall_s for run in side]
        cells.append(f"{statistics.median(speeds):,.0f}")
    couples = list(zip(*runs, strict=True))
    cells.append(_spread([a.tokens / a.wall_s * b.wall_s / b.tokens for a, b in couples]))
    cells.append(_spread([a.tokens / a.cpu_s * b.cpu_s / b.tokens for a, b in couples]))
    cells += [f"{statistics.median(run.dev_loss for run in side):.4f}" for side in runs]
    return f"| {' | '.join(cells)} |"


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}"


def main() -> None:
    """Prints a Markdown row whenever both sides of a pair have run once more; the last of each counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=80_000, help="tokens of each run (about 10 s each)")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=220.0, help="begin no repetition after so long")
    given = parser.parse_args()
    began_s = time.monotonic()
    import torch

    from decant_distill.train.student import require_training_stack

    require_training_stack(quantized=True)
    torch.set_num_threads(1)
    print("| pair | n | tokens/s | tokens/s | ratio, wall | ratio, CPU | held-out loss | held-out loss |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, _ = make_rows(folder, count=4000, seed=given.seed)
        data = mixed_lengths(data, folder / "mixed.jsonl", most=5, seed=given.seed)
        pairs = {pair: _configs(data, given, sides) for pair, sides in PAIRS.items()}
        # The first run of a process pays for what the others find ready.
        measure(_config(data, given).with_changes(output=folder / "first", token_budget=8000))
        found: dict[str, tuple[list[Run], list[Run]]] = {pair: ([], []) for pair in PAIRS}
        for repeat in count():
            if repeat and time.monotonic() - began_s > given.limit_s:
                break
            for number, (pair, configs) in enumerate(pairs.items()):
                for side in (0, 1) if repeat % 2 == 0 else (1, 0):
                    output = folder / f"pair{number}-side{side}-{repeat}"
                    found[pair][side].append(measure(configs[side].with_changes(output=output)))
                print(line(pair, found[pair]), flush=True)


def _configs(
    data: Path, given: argparse.Namespace, sides: tuple[dict[str, Any], dict[str, Any]]
) -> tuple[TrainConfig, TrainConfig]:
    from decant_distill.train.course import plan_course
    from decant_distill.train.student import load_tokenizer

    left, right = (_config(data, given).with_changes(**side) for side in sides)
    steps = plan_course(left, load_tokenizer(left.base)).plan().steps
    return left, as_many_steps(right, steps)


def _config(data: Path, given: argparse.Namespace) -> TrainConfig:
    return settings(data, Path("unused"), token_budget=given.tokens, batch_tokens=given.batch_tokens)


if __name__ == "__main__":
    main()
