"""What a window of corrupted batches does to a run, with the rewind and without: `python -m training.spike`.

Three runs per seed, alike but for this: clean rows; rows of which one window of batches is garbage (digits,
operations and ordinals at random); the same garbage with the rewind switched off. Writes JSON and
a Markdown table.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from decant.files import write_json, write_jsonl, write_text
from decant_distill.demo import counter
from decant_distill.demo.wording import ORDINALS
from decant_distill.train.config import TrainConfig
from decant_distill.train.course import plan_course
from decant_distill.train.student import load_tokenizer
from training.counter_rows import BASE, make_rows
from training.runs import settings, train

HEADINGS = (
    "seed",
    "steps",
    "clean run",
    "with rewind",
    "beside clean",
    "without",
    "beside clean",
    "rewinds (batches left out)",
)
ARMS = ("clean", "garbage, rewind", "garbage, no rewind")


def corrupted(row: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The row with every word of its reasoning replaced by a random one of the same kind, and its answer too.

    Digits stay digits and operations operations, so that the row keeps its number of tokens: the corrupted
    run has the batches of the clean one.
    """
    words = [_another(word, rng) for word in row["reasoning"].split(" ")]
    return {**row, "reasoning": " ".join(words), "answer": str(rng.randrange(10))}


def _another(word: str, rng: random.Random) -> str:
    if word.rstrip(".").isdigit():
        return str(rng.randrange(10)) + "." * word.endswith(".")
    for kind in (counter.ACTIONS, ORDINALS):
        if word in kind:
            return rng.choice(kind)
    return word


def corrupt_window(config: TrainConfig, target: Path, *, start: int, count: int) -> None:
    """Writes the run's rows with those of `count` batches from `start` on corrupted."""
    course = plan_course(config, load_tokenizer(config.base))
    batches = course.plan().batches[start : start + count]
    lines = {course.lessons[row].line for batch in batches for row in batch}
    rng = random.Random(config.seed)
    rows = [json.loads(line) for line in config.data.read_text(encoding="utf-8").splitlines()]
    write_jsonl(
        target, (corrupted(row, rng) if line in lines else row for line, row in enumerate(rows, start=1))
    )
    again = plan_course(config.with_changes(data=target), load_tokenizer(config.base))
    if again.plan() != course.plan():
        raise SystemExit(f"{target}: the corrupted rows are not as long as the clean ones")


def measure_seed(folder: Path, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """The three runs of one seed: their last loss on held-out rows, and what was gone around."""
    data, dev = make_rows(folder, count=given.rows, seed=seed)
    clean = settings(
        data,
        folder / "clean",
        dev_data=dev,
        dev_rows=300,
        token_budget=given.tokens,
        learning_rate=given.learning_rate,
        eval_every_steps=10**6,
        save_every_steps=25,
        seed=seed,
    )
    steps = plan_course(clean, load_tokenizer(BASE)).plan().steps
    garbage = folder / "garbage.jsonl"
    corrupt_window(clean, garbage, start=round(given.at * steps), count=given.window)
    arms = (
        clean,
        clean.with_changes(data=garbage, output=folder / "rewind"),
        clean.with_changes(data=garbage, output=folder / "no-rewind", spike_rewind=False),
    )
    records = [train(config) for config in arms]
    return {
        "seed": seed,
        "steps": steps,
        "arms": {
            arm: {
                "dev_loss": record["judgements"][-1]["loss"],
                "rewinds": record["rewinds"],
                "wall_s": record["wall_s"],
            }
            for arm, record in zip(ARMS, records, strict=True)
        },
    }


def as_markdown(outcome: dict[str, Any]) -> str:
    """The table of all seeds."""
    setting = (
        f"Counter world, bundled student, QLoRA, {outcome['tokens']:,} tokens in batches of 1,024;"
        f" {outcome['window']} batches from {outcome['at']:.0%} of the run on are garbage."
    )
    lines = [
        "# A window of corrupted batches",
        "",
        setting,
        f"`{outcome['command']}`",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in outcome["seeds"]:
        losses = [row["arms"][arm]["dev_loss"] for arm in ARMS]
        changes = [100 * (loss / losses[0] - 1) for loss in losses]
        around = ", ".join(
            f"step {r['spike_step'] + 1}: {r['skip_start']} to {r['skip_stop'] - 1}"
            for r in row["arms"][ARMS[1]]["rewinds"]
        )
        lines.append(
            f"| {row['seed']} | {row['steps']} | {losses[0]:.4f} | {losses[1]:.4f} | {changes[1]:+.1f} % |"
            f" {losses[2]:.4f} | {changes[2]:+.1f} % | {around or 'none'} |"
        )
    lines += ["", "Loss on 300 held-out problems after the last step, nats per token of the completion.", ""]
    return "\n".join(lines)


def main() -> None:
    """Runs all seeds; what is there from a killed run is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/spike"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--window", type=int, default=12)
    parser.add_argument("--at", type=float, default=0.6)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/spike"))
    given = parser.parse_args()
    seeds = [measure_seed(given.workdir / f"seed-{seed}", seed, given) for seed in range(given.seeds)]
    command = (
        f"python -m training.spike --seeds {given.seeds} --tokens {given.tokens} --window {given.window}"
        f" --at {given.at} --rows {given.rows} --learning-rate {given.learning_rate}"
    )
    outcome = {
        "command": command,
        "tokens": given.tokens,
        "window": given.window,
        "at": given.at,
        "seeds": seeds,
    }
    write_json(given.output.with_suffix(".json"), outcome)
    write_text(given.output.with_suffix(".md"), as_markdown(outcome))
    print(as_markdown(outcome))


if __name__ == "__main__":
    main()
