"""What settings cost in time, measured side by side: `python -m training.speed`.

Two pairs of runs, repeated in turn: length bucketing against padding on rows of mixed length, and spike
detection with a ring of checkpoints against neither. Tokens per second count real tokens over the whole run.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from training.counter_rows import make_rows
from training.runs import settings, train

PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "length bucketing / padding": ({"length_bucketing": True}, {"length_bucketing": False}),
    "detection and ring / neither": (
        {"spike_rewind": True, "save_every_steps": 100},
        {"spike_rewind": False, "save_every_steps": 10**6},
    ),
}


def main() -> None:
    """Prints a Markdown table: medians over the repetitions, and the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/speed"))
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    data, _ = make_rows(given.workdir, count=3000)
    print("| pair | tokens/s | tokens/s | ratio, least to most | loss | loss |\n|---|---|---|---|---|---|")
    for number, (name, pair) in enumerate(PAIRS.items()):
        speeds: tuple[list[float], list[float]] = ([], [])
        losses = [0.0, 0.0]
        for repeat in range(given.repeats):
            for side in (0, 1) if repeat % 2 == 0 else (1, 0):
                output = given.workdir / f"pair{number}-side{side}-{repeat}"
                record = train(settings(data, output, token_budget=given.tokens, **pair[side]))
                speeds[side].append(record["tokens"] / record["wall_s"])
                losses[side] = record["loss_curve"][-1]["loss"]
        ratios = [first / second for first, second in zip(*speeds, strict=True)]
        medians = [statistics.median(found) for found in speeds]
        print(
            f"| {name} | {medians[0]:,.0f} | {medians[1]:,.0f} | {statistics.median(ratios):.3f},"
            f" {min(ratios):.3f} to {max(ratios):.3f} | {losses[0]:.3f} | {losses[1]:.3f} |"
        )


if __name__ == "__main__":
    main()
