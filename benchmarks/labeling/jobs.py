"""A labeling job against the scripted engine: throughput against the ideal, and peak memory.

`python -m labeling.jobs throughput` (three minutes; each peer at most `--limit-s` more) and `memory` (ten)
each print a Markdown table. The teacher
is a `decant serve` of a script, so what a request takes is exact and whatever is lost is the job's own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.store import RequestStore
from decant.task import TaskConfig
from decant_distill.label_plan import asks_in, plan
from decant_distill.label_requests import Job, Sampling, Teacher
from labeling.served_script import served_script

_ASKED_OF_A_FULL_STORE = 10_000
_PEERS = ("distilabel", "curator")


@dataclass(slots=True)
class Scripted:
    """A running endpoint and the log of what it was asked, which is read on from where it was left."""

    base_url: str
    log: Path
    _lines: int = 0
    _bytes: int = 0

    def asked(self) -> int:
        """How many requests came to it, answered or not."""
        if self.log.exists():
            with self.log.open("rb") as file:
                file.seek(self._bytes)
                new = file.read()
            self._lines += new.count(b"\n")
            self._bytes += len(new)
        return self._lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a command took, and what it printed."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    output: str


@contextmanager
def scripted(folder: Path, *, latency_s: float, parallel: int) -> Generator[Scripted]:
    """An endpoint that answers every request after exactly `latency_s`, `parallel` at once."""
    log = folder / "timing.jsonl"
    log.unlink(missing_ok=True)
    answer = {"chunks": ["Answer: yes"], "ttft_s": latency_s, "prompt_tokens": 20}
    options = ["--parallel", str(parallel), "--queue-limit", str(4 * parallel), "--timing-log", str(log)]
    with served_script(folder, answer, options=options) as base_url:
        yield Scripted(base_url, log)


def write_rows(path: Path, count: int) -> Path:
    """A dataset of that many different prompts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            prompt = f"Is the number {number} followed by another one? Think of what comes after it."
            file.write(json.dumps({"id": f"r{number}", "prompt": prompt}) + "\n")
    return path


def label_command(
    endpoint: Scripted, data: Path, output: Path, *, concurrency: int, store: str | None = None
) -> list[str]:
    """`decant label` of a dataset through the endpoint."""
    command = [sys.executable, "-m", "decant", "label", str(data), "--output", str(output)]
    command += ["--concurrency", str(concurrency), "--set", f'endpoint.base_url="{endpoint.base_url}"']
    command += ["--set", 'endpoint.model="script"', *(["--store", store] if store else [])]
    return command


def run_measured(command: Sequence[str], *, limit_s: float = 3600.0) -> Measured:
    """Runs a command to its end, or SystemExit; its CPU time holds that of processes that it waited for."""
    started_s = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            shown = " ".join(command[:4])
            raise SystemExit(f"{shown} …: exit code {process.returncode} (limit {limit_s:.0f} s)")
        output.seek(0)
        told = output.read().decode("utf-8", "replace")
    return Measured(
        wall_s=time.perf_counter() - started_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss * 1024 / 1e6,
        output=told,
    )


def throughput(given: argparse.Namespace) -> None:
    """Rows per second against concurrency / latency, beside other labelers where their Pythons are named."""
    print("| labeler | rows | ideal, rows/s | rows/s | of the ideal | CPU per row, ms | peak MB | whole, s |")
    print("|---|---|---|---|---|---|---|---|")
    for number in range(given.repeats):
        folder = fresh(given.workdir / f"throughput-{number}")
        data, output = write_rows(folder / "data.jsonl", given.rows), folder / "labels.jsonl"
        with scripted(folder, latency_s=given.latency_s, parallel=given.concurrency) as endpoint:
            command = label_command(endpoint, data, output, concurrency=given.concurrency)
            found = run_measured(command, limit_s=given.limit_s)
            asking_s = read(output.with_suffix(".summary.json"))["run_s"]
            print(_row("decant label", given.rows, asking_s, found, given), flush=True)
            for name in _PEERS:
                if vars(given)[name] is not None:
                    print(_peer(name, endpoint, folder, given), flush=True)


def _peer(name: str, endpoint: Scripted, folder: Path, given: argparse.Namespace) -> str:
    data = write_rows(folder / "peer.jsonl", given.peer_rows)
    script = Path(__file__).with_name(f"peer_{name}.py")
    command = [str(vars(given)[name]), str(script), str(data), endpoint.base_url, "script"]
    try:
        found = run_measured([*command, str(given.concurrency)], limit_s=given.limit_s)
    except SystemExit as error:
        return f"| {name} | {given.peer_rows:,} | {error} |"
    told = json.loads(found.output.splitlines()[-1])
    return _row(name, told["rows"], told["seconds"], found, given)


def _row(name: str, rows: int, asking_s: float, found: Measured, given: argparse.Namespace) -> str:
    ideal, rate = given.concurrency / given.latency_s, rows / asking_s
    return (
        f"| {name} | {rows:,} | {ideal:.1f} | {rate:.1f} | {rate / ideal:.1%} "
        f"| {1000 * found.cpu_s / rows:.2f} | {found.peak_mb:.0f} | {found.wall_s:.1f} |"
    )


def memory(given: argparse.Namespace) -> None:
    """Peak memory of jobs of several sizes; all but the last rows were answered before."""
    print("| rows | asked in this run | peak memory, MB | whole command, s |")
    print("|---|---|---|---|")
    for rows in given.sizes:
        folder = fresh(given.workdir / f"memory-{rows}")
        data, output = write_rows(folder / "data.jsonl", rows), folder / "labels.jsonl"
        answered = max(0, rows - _ASKED_OF_A_FULL_STORE)
        answer_before(data, output.with_suffix(".store.sqlite"), answered)
        with scripted(folder, latency_s=0.0, parallel=32) as endpoint:
            found = run_measured(label_command(endpoint, data, output, concurrency=32))
        print(f"| {rows:,} | {rows - answered:,} | {found.peak_mb:.0f} | {found.wall_s:.1f} |", flush=True)


def answer_before(data: Path, store_path: Path, count: int) -> None:
    """Answers the first rows of a job in its store, as an earlier run of it would have."""
    job = Job(
        data=data,
        task=TaskConfig(),
        teacher=Teacher(model="script", revision=None),
        sampling=Sampling(samples=1, temperature=0.0, top_p=None, seed=0),
        limit=count,
    )
    with RequestStore.open(store_path) as store:
        for chunk in plan(job, store.get_many):
            asks = asks_in(chunk)
            store.add(ask.to_store(job.teacher, job.prompt_version) for ask in asks)
            answer = job.answer("Answer: yes", None, finish_reason="stop", usage=None, cost_usd=None)
            store.finish_many((ask.key, answer) for ask in asks)


def fresh(folder: Path) -> Path:
    """A folder without what an earlier run left of its job."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("labels*"):
        if old.is_file():
            old.unlink()
    return folder


def read(path: Path) -> dict[str, Any]:
    """A JSON object."""
    return json.loads(path.read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("throughput", "memory"))
    parser.add_argument("--workdir", type=Path, default=Path("runs/label-bench"))
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency-s", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 1_000_000])
    for name in _PEERS:
        parser.add_argument(f"--{name}", type=Path, help=f"Python of an environment that has {name}")
    parser.add_argument("--peer-rows", type=int, default=2_000, help="rows for each of them")
    parser.add_argument("--limit-s", type=float, default=600.0, help="most that one labeler may take")
    given = parser.parse_args(arguments)
    {"throughput": throughput, "memory": memory}[given.what](given)


if __name__ == "__main__":
    main()
