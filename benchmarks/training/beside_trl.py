"""A QLoRA step beside TRL's SFTTrainer: `python -m training.beside_trl MODEL` (needs trl and datasets).

Both arms train the same NF4 model with the same adapters on the same batches in the same order, each in a
process of its own, in turn. Tokens and CPU seconds count the steps after the first few; memory is the
process's peak, or the GPU's where there is one. TRL casts the adapters of a quantized base to bf16, Decant
keeps float32. A pair takes about 35 s on one core with the bundled student; none begins after `--limit-s`.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_WARM_STEPS = 3
_IGNORED = -100
ARMS = ("decant", "trl")


def rows_of(given: argparse.Namespace) -> list[dict[str, list[int]]]:
    """Rows of random ids and mixed length, the same for both arms; the first half of each is its prompt."""
    from decant_distill.train.student import load_tokenizer

    vocabulary = len(load_tokenizer(given.model))
    generator = np.random.default_rng(given.seed)
    count, shortest, longest = int(given.rows * given.steps), int(given.length // 2), int(given.length)
    lengths = [int(generator.integers(shortest, longest + 1)) for _ in range(count)]
    return [_row(generator.integers(0, vocabulary, size=length).tolist()) for length in lengths]


def _row(ids: list[int]) -> dict[str, list[int]]:
    prompt = len(ids) // 2
    return {"input_ids": ids, "labels": [_IGNORED] * prompt + ids[prompt:]}


def settings(given: argparse.Namespace, folder: Path) -> Any:
    """The run's settings as `decant train` takes them; TRL's arm builds its model from the same."""
    from decant_distill.train.config import TrainConfig

    return TrainConfig(
        base=given.model,
        data=given.model,
        output=folder / "student",
        compute_dtype=given.dtype,
        save_every_steps=10**6,
        learning_rate=1e-4,
        seed=given.seed,
    )


@dataclass(slots=True)
class Marks:
    """Clock and processor time at the same point of every step."""

    wall_s: list[float] = field(default_factory=list[float])
    cpu_s: list[float] = field(default_factory=list[float])

    def mark(self) -> None:
        """Notes both times."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall_s.append(time.monotonic())
        self.cpu_s.append(time.process_time())


def run_decant(given: argparse.Namespace, folder: Path) -> Marks:
    """The steps of Decant's loop."""
    from decant_distill.train.batches import BatchPlan
    from decant_distill.train.checkpoints import Checkpoints
    from decant_distill.train.encode import Example
    from decant_distill.train.loop import fit
    from decant_distill.train.objective import Objective
    from decant_distill.train.student import build_student
    from decant_distill.train.watch import Surroundings

    marks = Marks()

    class Marked(Objective):
        def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
            marks.mark()
            return super().batch(examples)

    rows = rows_of(given)
    examples = [
        Example(np.asarray(row["input_ids"], dtype=np.int32), len(row["input_ids"]) // 2) for row in rows
    ]
    batches = tuple(tuple(range(i, i + given.rows)) for i in range(0, len(rows), given.rows))
    tokens = tuple(sum(len(examples[row].ids) for row in batch) for batch in batches)
    plan = BatchPlan(batches, tokens, tokens, (1,) * len(batches), len(batches))
    config = settings(given, folder)
    around = Surroundings.quiet(config, Checkpoints.beside(config.output))
    fit(build_student(config), examples, lambda _spares: plan, objective=Marked(), around=around)
    return marks


def run_trl(given: argparse.Namespace, folder: Path) -> Marks:
    """The steps of TRL's SFTTrainer."""
    from peft import LoraConfig
    from transformers import TrainerCallback

    from decant_distill.train.student import load_base, load_tokenizer

    # By name: they stand in an environment of their own, which the type checker does not see.
    datasets: Any = importlib.import_module("datasets")
    trl: Any = importlib.import_module("trl")
    marks = Marks()

    class Clock(TrainerCallback):
        def on_step_begin(self, *_args: Any, **_given: Any) -> None:
            marks.mark()

    config = settings(given, folder)
    rows = rows_of(given)
    table = datasets.table.InMemoryTable.from_pydict({name: [row[name] for row in rows] for name in rows[0]})
    trainer: Any = trl.SFTTrainer(
        model=load_base(config.base, dtype=config.compute_dtype, nf4=True),
        processing_class=load_tokenizer(config.base),
        args=trl.SFTConfig(**_trl_settings(given, folder)),
        # Named, so that datasets need not hash its table: with some pyarrow versions it cannot.
        train_dataset=datasets.Dataset(table, fingerprint="rows"),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            target_modules="all-linear",
        ),
        callbacks=[Clock()],
    )
    trainer.train()
    return marks


def _trl_settings(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch

    return {
        "output_dir": str(folder),
        "max_steps": given.steps,
        "per_device_train_batch_size": given.rows,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "max_length": None,
        "completion_only_loss": False,  # the rows bring their labels
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": given.seed,
    }


def run_arm(given: argparse.Namespace) -> None:
    """One arm in this process; prints its measurement as JSON on the last line."""
    from decant_distill.train.student import require_training_stack
    from decant_distill.train.watch import peak_bytes

    require_training_stack(quantized=True)
    with tempfile.TemporaryDirectory() as folder:
        marks = (run_decant if given.arm == "decant" else run_trl)(given, Path(folder))
    rows = rows_of(given)[_WARM_STEPS * given.rows : (given.steps - 1) * given.rows]
    tokens = sum(len(row["input_ids"]) for row in rows)
    first, last = _WARM_STEPS, given.steps - 1
    measured: dict[str, float] = {
        "tokens_per_s": tokens / (marks.wall_s[last] - marks.wall_s[first]),
        "cpu_s_per_1000": 1000 * (marks.cpu_s[last] - marks.cpu_s[first]) / tokens,
        "peak": peak_bytes(),
    }
    print(json.dumps(measured))


def measure(arm: str, arguments: Sequence[str]) -> dict[str, float]:
    """One run of an arm in a process of its own."""
    command = [sys.executable, "-m", "training.beside_trl", *arguments, "--arm", arm]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def main() -> None:
    """Prints a Markdown row of each arm after every pair; the last ones count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--limit-s", type=float, default=200.0, help="begin no pair after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--arm", choices=ARMS)
    given = parser.parse_args()
    if given.arm:
        run_arm(given)
        return
    began_s = time.monotonic()
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    print("| arm | n | tokens/s, least to most | CPU s per 1,000 tokens | peak memory, GB |")
    print("|---|---|---|---|---|", flush=True)
    for number in range(given.repeats):
        if number and time.monotonic() - began_s > given.limit_s:
            break
        for arm in ARMS if number % 2 == 0 else ARMS[::-1]:
            found[arm].append(measure(arm, sys.argv[1:]))
        for arm in ARMS:
            print(line(arm, found[arm]), flush=True)


def line(arm: str, runs: Sequence[dict[str, float]]) -> str:
    """An arm's medians so far."""
    speeds = [one["tokens_per_s"] for one in runs]
    cpu_s, peak = (statistics.median(one[name] for one in runs) for name in ("cpu_s_per_1000", "peak"))
    spread = f"{statistics.median(speeds):,.0f}, {min(speeds):,.0f} to {max(speeds):,.0f}"
    return f"| {arm} | {len(runs)} | {spread} | {cpu_s:.3f} | {peak / 1e9:.3f} |"


if __name__ == "__main__":
    main()
