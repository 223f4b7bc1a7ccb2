"""What reading a teacher's scores costs a training step: `python -m training.teacher_scores_step --help`.

Every batch is trained on twice, with and without scores, in alternating order; the ratio of each pair
counts, by the clock and by the processor, so that a machine that slows down slows both. Without `--data` and
`--scores` it makes rows of the counter world and has the bundled teacher score them. About two minutes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from decant.hardware import describe_commit, describe_machine, describe_versions
from decant.stats import bootstrap_percentile
from decant_distill.train.batches import plan_batches
from decant_distill.train.config import TrainConfig
from decant_distill.train.encode import Example, encode
from decant_distill.train.objective import Objective
from decant_distill.train.rows import read_lessons
from decant_distill.train.student import build_student, load_tokenizer, require_training_stack
from decant_distill.train.teacher_scores import open_scores
from training.counter_rows import BASE, make_rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the outcome as JSON."""
    given = _parser().parse_args(arguments)
    if given.data is None or given.scores is None:
        given.data, given.scores = _made(given.workdir)
    require_training_stack(quantized=given.method == "qlora")
    import torch

    torch.set_num_threads(given.threads)
    config = TrainConfig(
        base=given.base,
        data=given.data,
        output=Path("unused"),
        method=given.method,
        compute_dtype=given.dtype,
        batch_tokens=given.batch_tokens,
    )
    examples = _examples(config, given.scores)
    plan = _plan(examples, given.batch_tokens, given.steps)
    ratios = list(_ratios(build_student(config).train(), examples, plan, limit_s=given.limit_s))
    print(
        json.dumps(
            {
                "step_time_ratio": _told([wall for wall, _ in ratios[given.warmup :]]),
                "step_cpu_ratio": _told([cpu for _, cpu in ratios[given.warmup :]]),
                "bytes_per_token": open_scores(given.scores).info.bytes_per_token,
                "machine": describe_machine(),
                "versions": describe_versions(),
                "commit": describe_commit(Path(__file__).parent),
            },
            indent=2,
        )
    )


def _examples(config: TrainConfig, scores: Path) -> list[Example]:
    tokenizer = load_tokenizer(config.base)
    lessons = read_lessons(config.data, task=config.task, placement=config.placement).kept
    examples = encode(tokenizer, lessons, base=str(config.base))
    return open_scores(scores).attach(examples, lessons, tokenizer=tokenizer, data=config.data)


def _plan(examples: Sequence[Example], batch_tokens: int, steps: int) -> Sequence[tuple[int, ...]]:
    lengths = [len(example.ids) for example in examples]
    return plan_batches(
        lengths, token_budget=steps * batch_tokens, batch_tokens=batch_tokens, seed=0
    ).batches[:steps]


def _told(ratios: Sequence[float]) -> dict[str, Any]:
    interval = bootstrap_percentile(ratios, 50, seed=0)
    return {
        "median": statistics.median(ratios),
        "interval": [interval.low, interval.high],
        "n": len(ratios),
    }


def _made(workdir: Path) -> tuple[Path, Path]:
    """Rows of the counter world and the bundled teacher's scores of them; kept for the next time."""
    data, scores = workdir / "train.jsonl", workdir / "scores"
    if not data.is_file():
        make_rows(workdir, count=2000)
    if not scores.is_dir():
        teacher = BASE.parent / "teacher"
        command = [sys.executable, "-m", "decant", "logits", str(data), "--teacher", str(teacher)]
        subprocess.run([*command, "--output", str(scores), "--dtype", "float32"], check=True)
    return data, scores


def _ratios(
    model: Any, examples: Sequence[Example], plan: Sequence[tuple[int, ...]], *, limit_s: float
) -> Iterator[tuple[float, float]]:
    """For each batch the time with scores over that without, by the clock and by the processor."""
    objectives = (Objective(), Objective(teacher_weight=0.5))
    began_s = time.monotonic()
    for number, batch in enumerate(plan):
        if time.monotonic() - began_s > limit_s:
            return
        rows = [examples[i] for i in batch]
        order = (0, 1) if number % 2 else (1, 0)
        took = {which: _step_s(model, objectives[which], rows) for which in order}
        yield took[1][0] / took[0][0], took[1][1] / took[0][1]
        if number % 20 == 19:
            sys.stderr.write(f"{number + 1} of {len(plan)} batches\n")


def _step_s(model: Any, objective: Objective, rows: Sequence[Example]) -> tuple[float, float]:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    batch = objective.batch(rows)
    labels = batch.pop("labels")
    loss: Any = objective.loss(model(**batch).logits, labels)
    loss.backward()
    model.zero_grad()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=BASE, help="student before training")
    parser.add_argument("--data", type=Path, help="curated rows")
    parser.add_argument("--scores", type=Path, help="their scores, from decant logits")
    parser.add_argument("--workdir", type=Path, default=Path("runs/teacher-scores"))
    parser.add_argument("--limit-s", type=float, default=180.0, help="begin no batch after so long")
    parser.add_argument("--method", choices=["qlora", "lora", "full"], default="qlora")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--warmup", type=int, default=20, help="steps that do not count")
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    main()
