"""Serves a model over two ranks with vLLM, slows one rank down, and prints who computed and who waited.

`python benchmarks/stragglers.py MODEL --engine-python PYTHON` prints Markdown: the straggler table, whether
every step sums to its forward, what of a client's latency is unexplained, and throughput with rank timing on
and off. Run it on a machine that does nothing else: on a CPU every rank spins on its own core.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_START_LIMIT_S = 300.0
_SLOW_RANK = 1
_DELAYS_S = (0.0, 0.005, 0.02)
_TOKENS = 32
_CLIENTS = 4
_LOG_TAIL = 4000


@dataclass(frozen=True, slots=True)
class Served:
    """A running server, the file that says for how long the slow rank sleeps, and its log."""

    http: httpx.Client
    model: str
    delay: Path
    log: Path


@dataclass(frozen=True, slots=True)
class Answer:
    """One timing record, and the end-to-end time that its client saw."""

    record: dict[str, Any]
    client_s: float

    def per_step_ms(self, rank: int, kind: str) -> float:
        """Milliseconds per engine step that a rank spent on something."""
        return self.record["ranks"][rank][kind] / self.record["shards"]["steps"] * 1e3


@contextmanager
def serving(options: argparse.Namespace, folder: Path, *, timed: bool, delayed: bool) -> Generator[Served]:
    """The model behind `decant serve` while the context lasts."""
    ready, delay = folder / "ready.json", folder / "delay"
    ready.unlink(missing_ok=True)
    delay.write_text("0")
    command = [sys.executable, "-m", "decant", "serve", options.model, "--engine", "vllm", "--port", "0"]
    command += ["--engine-python", options.engine_python, "--tensor-parallel-size", str(options.ranks)]
    command += ["--context", "512", "--parallel", str(_CLIENTS), "--ready-file", str(ready)]
    command += ["--shard-timing", "on" if timed else "off"]
    environment = os.environ | ({"DECANT_SHARDS_DELAY": f"{_SLOW_RANK}:{delay}"} if delayed else {})
    with (folder / "serve.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        told = _wait(process, ready, folder / "serve.log")
        base_url = told["base_url"].removesuffix("/v1")
        with httpx.Client(base_url=base_url, timeout=120.0, trust_env=False) as http:
            yield Served(http, told["model"], delay, folder / "serve.log")
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(process: subprocess.Popen[bytes], ready: Path, log: Path) -> dict[str, Any]:
    give_up_at = time.monotonic() + _START_LIMIT_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > give_up_at:
            raise SystemExit(log.read_text(errors="replace").strip().splitlines()[-1])
        time.sleep(0.05)
    return json.loads(ready.read_text())


def ask(served: Served) -> Answer:
    """One streamed answer of a fixed length."""
    messages = [{"role": "user", "content": "the cat sat on the mat"}]
    body = {"model": served.model, "messages": messages, "temperature": 0, "stream": True}
    body |= {"max_tokens": _TOKENS, "stop": []}
    began_s = time.perf_counter()
    with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        last_s = began_s
        for _ in response.iter_bytes():
            last_s = time.perf_counter()
    request_id = response.headers["x-request-id"]
    record: dict[str, Any] = served.http.get(f"/v1/requests/{request_id}/timing").raise_for_status().json()
    return Answer(record, last_s - began_s)


def straggle(served: Served, rounds: int) -> dict[float, list[Answer]]:
    """Answers under each delay, in turns, so that a drift of the machine meets all alike."""
    for _ in range(3):
        ask(served)
    answers: dict[float, list[Answer]] = {delay_s: [] for delay_s in _DELAYS_S}
    for _ in range(rounds):
        for delay_s in _DELAYS_S:
            served.delay.write_text(str(delay_s))
            answers[delay_s].append(ask(served))
    served.delay.write_text("0")
    return answers


def straggler_table(answers: dict[float, list[Answer]]) -> list[str]:
    """What each delay added per step to the slow rank's compute and to the other's wait."""
    lines = [
        "| delay before rank 1's forward | its compute grew by | rank 0's wait by | rank 0's compute by |",
        "|---|---|---|---|",
    ]
    places = ((_SLOW_RANK, "compute_s"), (0, "wait_s"), (0, "compute_s"))
    for delay_s in _DELAYS_S[1:]:
        cells = [f"{delay_s * 1e3:g} ms"]
        for rank, kind in places:
            pairs = zip(answers[delay_s], answers[0.0], strict=True)
            grown = [slow.per_step_ms(rank, kind) - plain.per_step_ms(rank, kind) for slow, plain in pairs]
            off = (
                f" ({statistics.fmean(grown) / delay_s / 10 - 100:+.1f} %)"
                if (rank, kind) != places[2]
                else ""
            )
            cells.append(f"{statistics.fmean(grown):.2f} ms{off}, sd {statistics.stdev(grown):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    rounds = len(answers[0.0])
    told = f"Milliseconds per engine step; {rounds} paired answers of at most {_TOKENS} tokens each."
    return [*lines, "", told]


def identity_lines(served: Served) -> list[str]:
    """What the server counted of its engine steps."""
    state = served.http.get("/health").json()["models"][served.model]["shards"]
    lost = {name: state[name] for name in ("mismatched", "incomplete", "dropped", "unreadable")}
    told = ", ".join(f"{count} {name}" for name, count in lost.items())
    steps, ranks, broken = state["steps"], state["ranks"], state["broken_sums"]
    summed = f"compute + wait + comm = forward, to the nanosecond, on {steps} steps of {ranks} ranks"
    return [f"{summed}, but for {broken} records; {told}."]


def residual_lines(answers: Sequence[Answer]) -> list[str]:
    """What a client saw beyond the stages that the server accounts for."""
    unexplained = [
        (
            answer.client_s
            - sum(v or 0.0 for n, v in answer.record["shards"]["latency"].items() if n != "total_s")
        )
        for answer in answers
    ]
    shares = [abs(left) / answer.client_s for left, answer in zip(unexplained, answers, strict=True)]
    kept = sum(
        abs(left) <= max(0.001, 0.02 * answer.client_s)
        for left, answer in zip(unexplained, answers, strict=True)
    )
    middle_ms, worst_ms = statistics.median(unexplained) * 1e3, max(unexplained) * 1e3
    told = f"Of the client's end-to-end time the stages leave {middle_ms:.2f} ms unexplained"
    told += f" (median; {statistics.median(shares):.2%}), at most {worst_ms:.2f} ms;"
    return [f"{told} {kept} of {len(answers)} answers are within 2 % or 1 ms."]


def tokens_per_s(served: Served, requests: int) -> float:
    """Tokens per second of a fixed number of answers to concurrent clients."""
    ask(served)

    def one(_: int) -> int:
        messages = [{"role": "user", "content": "the cat sat on the mat"}]
        body = {"model": served.model, "messages": messages, "temperature": 0, "max_tokens": _TOKENS}
        answer = served.http.post("/v1/chat/completions", json=body)
        if answer.is_error:
            raise SystemExit(f"{answer.text}\n{served.log.read_text(errors='replace')[-_LOG_TAIL:]}")
        return answer.json()["usage"]["completion_tokens"]

    with ThreadPoolExecutor(_CLIENTS) as clients:
        list(clients.map(one, range(_CLIENTS)))
        began_s = time.perf_counter()
        tokens = sum(clients.map(one, range(requests)))
        return tokens / (time.perf_counter() - began_s)


def overhead_lines(options: argparse.Namespace, folder: Path) -> list[str]:
    """Throughput with rank timing on and off, in turns, each time in a fresh engine."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    for number in range(options.starts):
        for timed in (True, False) if number % 2 else (False, True):
            with serving(options, folder, timed=timed, delayed=False) as served:
                rates[timed] += [tokens_per_s(served, options.requests) for _ in range(3)]
    on, off = (statistics.median(rates[timed]) for timed in (True, False))
    spread = "; ".join(
        f"{'on' if timed else 'off'} {min(found):.0f} to {max(found):.0f}" for timed, found in rates.items()
    )
    told = f"Throughput with rank timing on is {on / off:.3f} of off: {on:.0f} against {off:.0f} tokens/s"
    counted = f"medians of {len(rates[True])} runs in {options.starts} engines each; {spread}"
    return [f"{told} ({counted})."]


def main() -> None:
    """Runs it all and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("--engine-python", required=True, help="an interpreter with vLLM")
    parser.add_argument("--ranks", type=int, default=2, help="tensor_parallel_size")
    parser.add_argument("--rounds", type=int, default=10, help="answers under each delay")
    parser.add_argument(
        "--starts", type=int, default=3, help="engines per side of the throughput; 0 leaves it out"
    )
    parser.add_argument("--requests", type=int, default=64, help="answers per throughput run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(options, folder, timed=True, delayed=True) as served:
            answers = straggle(served, options.rounds)
            lines = [*straggler_table(answers), "", *identity_lines(served), ""]
            lines += residual_lines([answer for found in answers.values() for answer in found])
            worst = max(answers[_DELAYS_S[-1]], key=lambda answer: answer.client_s).record
        command = f"python benchmarks/stragglers.py {' '.join(sys.argv[1:])}"
        print("\n".join([f"`{command}` on {platform.machine()}, {os.cpu_count()} cores", "", *lines, ""]))
        print("\n".join(["```text", *_waterfall(worst), "```"]), flush=True)
        if options.starts:
            print("\n".join(["", *overhead_lines(options, folder)]))


def _waterfall(record: dict[str, Any]) -> list[str]:
    """The slowest answer, as `decant waterfall` shows it."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as log:
        log.write(json.dumps(record) + "\n")
        log.flush()
        command = [sys.executable, "-m", "decant", "waterfall", record["request_id"], "--log", log.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.rstrip().splitlines()


if __name__ == "__main__":
    main()
