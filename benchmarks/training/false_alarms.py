"""How often healthy runs are taken for spiking ones: `python -m training.false_alarms`.

Trains the bundled student at several learning rates and batch sizes, the smallest of a few rows and the
highest rate three times the usual one, with the rewind on, and counts the rewinds.
"""

import argparse
import itertools
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
    given = parser.parse_args()
    data, _ = make_rows(given.workdir, count=3000)
    print("| batch tokens | learning rate | seed | steps | final loss | rewinds |\n|---|---|---|---|---|---|")
    steps = rewinds = 0
    for batch, rate, seed in itertools.product(BATCH_TOKENS, LEARNING_RATES, range(given.seeds)):
        config = settings(
            data,
            given.workdir / f"b{batch}-lr{rate:g}-s{seed}",
            token_budget=given.tokens,
            batch_tokens=batch,
            learning_rate=rate,
            seed=seed,
        )
        record = train(config)
        steps, rewinds = steps + record["steps"], rewinds + len(record["rewinds"])
        loss = record["loss_curve"][-1]["loss"]
        print(f"| {batch} | {rate:g} | {seed} | {record['steps']} | {loss:.3f} | {len(record['rewinds'])} |")
    print(f"\n{rewinds} rewinds in {steps:,} healthy steps.")


if __name__ == "__main__":
    main()
