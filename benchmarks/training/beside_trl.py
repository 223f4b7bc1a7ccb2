"""A QLoRA step beside TRL's SFTTrainer: `python -m training.beside_trl MODEL` (needs trl and datasets).

Both arms train the same NF4 model with the same adapters on the same batches in the same order, each in a
process of its own, in turn. Tokens per second count the steps after the first few; memory is the process's
peak, or the GPU's where there is one. TRL casts the adapters of a quantized base
to bf16, Decant keeps float32.
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


def run_decant(given: argparse.Namespace, folder: Path) -> list[float]:
    """Seconds of each step of Decant's loop."""
    from decant_distill.train.batches import BatchPlan
    from decant_distill.train.checkpoints import Checkpoints
    from decant_distill.train.encode import Example
    from decant_distill.train.loop import fit
    from decant_distill.train.objective import Objective
    from decant_distill.train.student import build_student
    from decant_distill.train.watch import Surroundings

    rows = rows_of(given)
    examples = [
        Example(np.asarray(row["input_ids"], dtype=np.int32), len(row["input_ids"]) // 2) for row in rows
    ]
    batches = tuple(tuple(range(i, i + given.rows)) for i in range(0, len(rows), given.rows))
    tokens = tuple(sum(len(examples[row].ids) for row in batch) for batch in batches)
    plan = BatchPlan(batches, tokens, tokens, (1,) * len(batches), len(batches))
    config = settings(given, folder)
    around = Surroundings.quiet(config, Checkpoints.beside(config.output))
    outcome = fit(build_student(config), examples, lambda _spares: plan, objective=Objective(), around=around)
    return list(outcome.progress.seconds)


def run_trl(given: argparse.Namespace, folder: Path) -> list[float]:
    """Seconds of each step of TRL's SFTTrainer."""
    import torch
    from peft import LoraConfig
    from transformers import TrainerCallback

    from decant_distill.train.student import load_base, load_tokenizer

    # By name: they stand in an environment of their own, which the type checker does not see.
    datasets: Any = importlib.import_module("datasets")
    trl: Any = importlib.import_module("trl")
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_args: Any, **_given: Any) -> None:
            self.began_s = time.monotonic()

        def on_step_end(self, *_args: Any, **_given: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.monotonic() - self.began_s)

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
    return seconds


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
        seconds = (run_decant if given.arm == "decant" else run_trl)(given, Path(folder))
    lengths = [len(row["input_ids"]) for row in rows_of(given)][_WARM_STEPS * given.rows :]
    print(json.dumps({"tokens_per_s": sum(lengths) / sum(seconds[_WARM_STEPS:]), "peak": peak_bytes()}))


def measure(arm: str, arguments: Sequence[str]) -> dict[str, float]:
    """One run of an arm in a process of its own."""
    command = [sys.executable, "-m", "training.beside_trl", *arguments, "--arm", arm]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def main() -> None:
    """Prints a Markdown table of both arms, medians over the repetitions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--arm", choices=ARMS)
    given = parser.parse_args()
    if given.arm:
        run_arm(given)
        return
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(given.repeats):
        for arm in ARMS:
            found[arm].append(measure(arm, sys.argv[1:]))
    print("| arm | tokens/s, least to most | peak memory, GB |\n|---|---|---|")
    for arm, runs in found.items():
        speeds = [one["tokens_per_s"] for one in runs]
        peak = statistics.median(one["peak"] for one in runs) / 1e9
        spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        print(f"| {arm} | {statistics.median(speeds):,.0f}, {spread} | {peak:.3f} |")


if __name__ == "__main__":
    main()
