"""How much of a llama.cpp server's own throughput a labeling job keeps: a load and the job in turns.

`python -m labeling.llamacpp MODEL.gguf` serves the model, saturates it with a bare closed loop of the same
requests, labels the same rows, and prints tokens per second of each and their ratio, round by round. A round
of 400 rows takes about a minute on two cores; give nothing else the machine.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from decant.endpoint import EndpointConfig, open_endpoint
from decant.timing import percentile
from decant.wire_client import open_load_client
from labeling.jobs import fresh, read, run_measured, write_rows

_WARM_UP = 16


def requests(data: Path, model: str, max_tokens: int) -> Iterator[dict[str, Any]]:
    """What the labeler asks for each row, without its seed."""
    for line in data.read_text(encoding="utf-8").splitlines():
        messages = [{"role": "user", "content": json.loads(line)["prompt"]}]
        yield {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0.0}


async def saturated(base_url: str, model: str, data: Path, given: argparse.Namespace) -> float:
    """Tokens out per second of a closed loop that does nothing with the answers."""
    left, tokens = requests(data, model, given.max_tokens), 0

    async def loop_of(client: Any) -> None:
        nonlocal tokens
        for request in left:
            completion = await client.chat(request, stream=False)
            tokens += completion.usage.completion_tokens if completion.usage else 0

    async with open_load_client(base_url, api_key=None, timeout_s=600.0) as client:
        started_s = time.perf_counter()
        await asyncio.gather(*(loop_of(client) for _ in range(given.concurrency)))
        return tokens / (time.perf_counter() - started_s)


def labeled(base_url: str, model: str, data: Path, given: argparse.Namespace) -> float:
    """Tokens out per second of `decant label` on the same rows, from its first request to its last."""
    folder = fresh(data.parent)
    output = folder / "labels.jsonl"
    settings = {"endpoint.base_url": base_url, "endpoint.model": model, "task.max_tokens": given.max_tokens}
    command = [sys.executable, "-m", "decant", "label", str(data), "--output", str(output)]
    command += ["--concurrency", str(given.concurrency)]
    for name, value in settings.items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    run_measured(command, limit_s=given.limit_s)
    summary = read(output.with_suffix(".summary.json"))
    return summary["tokens"]["completion"] / summary["run_s"]


async def measure(given: argparse.Namespace) -> None:
    """Serves the model and prints a row for each round."""
    data = write_rows(given.workdir / "data.jsonl", given.rows)
    warm = write_rows(given.workdir / "warm.jsonl", _WARM_UP)
    config = EndpointConfig(serve=given.model, engine="llamacpp", parallel=given.concurrency)
    ratios: list[float] = []
    print("| round | engine alone, tokens/s | labeling, tokens/s | of the engine |\n|---|---|---|---|")
    async with open_endpoint(config, log_dir=given.workdir) as endpoint:
        await saturated(endpoint.base_url, endpoint.model, warm, given)
        for number in range(1, given.rounds + 1):
            alone = await saturated(endpoint.base_url, endpoint.model, data, given)
            job = await asyncio.to_thread(labeled, endpoint.base_url, endpoint.model, data, given)
            ratios.append(job / alone)
            print(f"| {number} | {alone:.1f} | {job:.1f} | {job / alone:.1%} |", flush=True)
    print(f"\nmedian of {len(ratios)}: {percentile(ratios, 50):.1%} ({min(ratios):.1%} to {max(ratios):.1%})")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="GGUF file or a folder with one")
    parser.add_argument("--workdir", type=Path, default=Path("runs/label-llamacpp"))
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--limit-s", type=float, default=600.0)
    given = parser.parse_args(arguments)
    given.workdir.mkdir(parents=True, exist_ok=True)
    asyncio.run(measure(given))


if __name__ == "__main__":
    main()
