"""How often healthy runs are taken for spiking ones: `python -m training.false_alarms`.

Trains the bundled student at several learning rates and batch sizes, the smallest of a few rows and the
highest rate three times the usual one, with the rewind on, and counts the rewinds. About eight minutes on one
core; no run begins after `--limit-s`, and the same command goes on with those that are missing.
"""

import argparse
import itertools
import time
from pathlib import Path

from training.counter_rows import make_rows
from training.runs import settings, train

BATCH_TOKENS = (128, 256, 1024)
LEARNING_RATES = (1e-3, 3e-3, 1e-2)


def main() -> None:
    """Prints a Markdown table of rewinds per setting and in all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/false-alarms"))
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=220.0, help="begin no run after so long")
    given = parser.parse_args()
    began_s = time.monotonic()
    data, _ = make_rows(given.workdir, count=3000)
    print("| batch tokens | learning rate | seed | steps | final loss | rewinds |")
    print("|---|---|---|---|---|---|", flush=True)
    steps = rewinds = missing = 0
    for batch, rate, seed in itertools.product(BATCH_TOKENS, LEARNING_RATES, range(given.seeds)):
        config = settings(
            data,
            given.workdir / f"b{batch}-lr{rate:g}-s{seed}",
            token_budget=given.tokens,
            batch_tokens=batch,
            learning_rate=rate,
            seed=seed,
        )
        done = (config.output / "manifest.json").is_file()
        if not done and time.monotonic() - began_s > given.limit_s:
            missing += 1
            continue
        record = train(config)
        steps, rewinds = steps + record["steps"], rewinds + len(record["rewinds"])
        loss, went_back = record["loss_curve"][-1]["loss"], len(record["rewinds"])
        print(f"| {batch} | {rate:g} | {seed} | {record['steps']} | {loss:.3f} | {went_back} |", flush=True)
    left = f" {missing} runs are missing: the same command goes on." if missing else ""
    print(f"\n{rewinds} rewinds in {steps:,} healthy steps.{left}")


if __name__ == "__main__":
    main()
