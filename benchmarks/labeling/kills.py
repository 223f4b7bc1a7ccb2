"""SIGKILL at random moments of a labeling job, and a rerun: what is lost, doubled and paid again.

`python -m labeling.kills` runs one worker on SQLite; with `--store postgresql://…`, an empty database, two
workers that are killed in turn. It prints a Markdown table; 50 kills take about four minutes.
"""

import argparse
import json
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.files import write_json
from decant.hardware import provenance
from decant.store import RequestStore
from labeling.jobs import Scripted, fresh, label_command, scripted, write_rows

HEADINGS = (
    "store",
    "kills",
    "answers in the store at the kills",
    "rows in",
    "rows out",
    "lost",
    "doubled",
    "paid again",
    "in flight at the kills, at most",
)


@dataclass(frozen=True, slots=True)
class Killed:
    """What a job that was killed again and again came to; `kept` counts answers at each kill."""

    kept: list[int]
    exit_codes: list[int]
    paid_again: int
    written: list[list[dict[str, Any]]]

    def faults(self, rows: int) -> list[str]:
        """What is wrong with it, in words; nothing for a job that lost nothing."""
        wanted = [f"r{number}" for number in range(rows)]
        found = [f"exit codes {self.exit_codes}"] if any(self.exit_codes) else []
        found += ["an answer left the store"] if self.kept != sorted(self.kept) else []
        for lines in self.written:
            found += ["rows out are not rows in"] if [line["id"] for line in lines] != wanted else []
            failed = sum(line["status"] != "done" for line in lines)
            found += [f"{failed} rows without a label"] if failed else []
        return found


def run(given: argparse.Namespace) -> tuple[Killed, int]:
    """The job, killed; and how many workers it had."""
    folder = fresh(given.workdir)
    data = write_rows(folder / "data.jsonl", given.rows)
    place = given.store or str(folder / "labels.store.sqlite")
    workers = 2 if "://" in place else 1
    outputs = [folder / f"labels-{number}.jsonl" for number in range(workers)]
    with scripted(folder, latency_s=given.latency_s, parallel=2 * given.concurrency) as endpoint:
        commands = [
            label_command(endpoint, data, output, concurrency=given.concurrency, store=place)
            for output in outputs
        ]
        kept, codes = kill_and_rerun(commands, endpoint, place, given)
        paid_again = endpoint.asked() - given.rows
    return Killed(kept, codes, paid_again, [read_lines(output) for output in outputs]), workers


def kill_and_rerun(
    commands: list[list[str]], endpoint: Scripted, place: str, given: argparse.Namespace
) -> tuple[list[int], list[int]]:
    """Kills one worker after the other; the answers stored at each kill, and the exit codes in the end."""
    generator, kept = random.Random(given.seed), list[int]()
    running = [begin(command) for command in commands]
    for number in range(given.kills):
        asked, killed = endpoint.asked(), number % len(commands)
        while endpoint.asked() == asked and running[killed].poll() is None:
            time.sleep(0.01)
        time.sleep(generator.uniform(0.0, given.spread_s))
        if running[killed].poll() is not None:
            raise SystemExit(f"the job ended before kill {number + 1}: give it more --rows")
        running[killed].send_signal(signal.SIGKILL)
        running[killed].wait()
        kept.append(done_in(place))
        running[killed] = begin(commands[killed])
    return kept, [process.wait() for process in running]


def begin(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts a command that says nothing."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def done_in(place: str) -> int:
    """How many answers a store holds."""
    with RequestStore.open(place) as store:
        return store.counts()["done"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def row(killed: Killed, workers: int, given: argparse.Namespace) -> dict[str, Any]:
    """The table's row."""
    ids = [line["id"] for line in killed.written[0]]
    wanted = {f"r{number}" for number in range(given.rows)}
    values = (
        "PostgreSQL, 2 workers" if workers == 2 else "SQLite",
        given.kills,
        f"{killed.kept[0]:,} to {killed.kept[-1]:,}",
        f"{given.rows:,}",
        f"{len(ids):,}",
        len(wanted - set(ids)),
        len(ids) - len(set(ids)),
        killed.paid_again,
        given.kills * given.concurrency,
    )
    return dict(zip(HEADINGS, values, strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Kills a job, prints the table, and fails where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/label-kills"))
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency-s", type=float, default=0.1)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument(
        "--spread-s", type=float, default=0.5, help="kills come up to so long after an answer"
    )
    parser.add_argument("--store", help="an empty PostgreSQL database, shared by two workers")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    killed, workers = run(given)
    found = row(killed, workers, given)
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    print(f"| {' | '.join(str(value) for value in found.values())} |")
    faults = killed.faults(given.rows)
    facts = {**found, "faults": faults, **provenance(Path(__file__).parent)}
    write_json(given.workdir / "kills.json", facts)
    if faults:
        raise SystemExit(f"not whole: {'; '.join(faults)}")


if __name__ == "__main__":
    main()
