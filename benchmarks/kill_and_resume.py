"""Kills the demonstration during label, train and quantize, runs it again, and says what was redone.

`python benchmarks/kill_and_resume.py` prints a Markdown table. SIGKILL takes the recipe's
runner, the stage and every server at one moment, as losing the machine would.
"""

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_POLL_S = 0.01
_LIMIT_S = 900.0


@dataclass(frozen=True, slots=True)
class Kill:
    """When to kill, and what the next run says about it."""

    stage: str
    due: Callable[[Path], bool]
    before: Callable[[Path], str]
    after: Callable[[Path], str]


def answered(workdir: Path) -> int:
    """How many labels the store holds."""
    store = workdir / "labels/store.sqlite"
    if not store.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
            return int(connection.execute("select count(*) from labels where status = 'done'").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def checkpoint_step(workdir: Path) -> int:
    """The newest checkpoint of the student that is whole."""
    whole = (workdir / "student.checkpoints").glob("checkpoint-*/progress.json")
    return max((int(path.parent.name.rpartition("-")[2]) for path in whole), default=0)


def half_written(workdir: Path) -> bool:
    """Whether the quantized artifact is being written beside its place."""
    return any(workdir.glob(".quantized.aside-*/*.gguf"))


def read(path: Path) -> dict[str, Any]:
    """A JSON object."""
    return json.loads(path.read_text(encoding="utf-8"))


def redone_labels(workdir: Path) -> str:
    """What the second run asked for, and what it found."""
    summary = read(workdir / "labels/labels.summary.json")
    lost = summary["rows"] - summary["reused"]
    return f"{summary['reused']} answers reused, {lost} of {summary['rows']} asked for"


def redone_steps(workdir: Path) -> str:
    """How many steps the whole training took in the end, and how often it was resumed."""
    training = read(workdir / "student/manifest.json")["training"]
    return f"resumed {training['resumed']} time(s), {training['steps']} steps in all"


def written_anew(workdir: Path) -> str:
    """The artifact after the second run, and that nothing was left beside it."""
    manifest = read(workdir / "quantized/manifest.json")
    left = len(list(workdir.glob(".quantized.aside-*")))
    return f"{manifest['size_bytes']:,} bytes written anew, {left} leftovers"


KILLS: tuple[Kill, ...] = (
    Kill("label", lambda w: answered(w) >= 200, lambda w: f"{answered(w)} answers stored", redone_labels),
    Kill(
        "student",
        lambda w: checkpoint_step(w) > 0,
        lambda w: f"checkpoint at step {checkpoint_step(w)}",
        redone_steps,
    ),
    Kill("quantize", half_written, lambda _: "artifact half written beside its place", written_anew),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demonstration, killed once in each of the stages, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/killed"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    given = parser.parse_args(arguments)
    changes = [argument for change in given.set for argument in ("--set", change)]
    command = [sys.executable, "-m", "decant", "demo", "--workdir", str(given.workdir), *changes]
    rows = [(kill, *run_and_kill(command, kill, given.workdir)) for kill in KILLS]
    completed = subprocess.run([*command, "--until", "quantize"], check=False, stdout=subprocess.DEVNULL)
    print("| killed in | after | state at the kill | the same command again |")
    print("|---|---|---|---|")
    for kill, seconds, state in rows:
        print(f"| {kill.stage} | {seconds:.1f} s | {state} | {kill.after(given.workdir)} |")
    return completed.returncode


def run_and_kill(command: Sequence[str], kill: Kill, workdir: Path) -> tuple[float, str]:
    """Starts the recipe, kills its whole process group when it is due, and returns seconds and state."""
    started = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    while not kill.due(workdir):
        if process.poll() is not None or time.monotonic() - started > _LIMIT_S:
            raise SystemExit(f"{kill.stage}: the run ended with {process.poll()} before it could be killed")
        time.sleep(_POLL_S)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return time.monotonic() - started, kill.before(workdir)


if __name__ == "__main__":
    sys.exit(main())
