"""`python -m gateway KIND`: what the gateway costs and what others cost beside it, and what it survives.

Rounds take turns between the sides, so that what the machine does meanwhile hits all of them. Run it from
`benchmarks/` on a machine that does nothing else.
"""

import argparse
import asyncio
import json
import math
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gateway.chaos import run_all, write_rows
from gateway.client import Address, Round, one_round
from gateway.lookup import fill, report, rounds_of
from gateway.models import random_gguf
from gateway.report import latency_row, rate_row, spread, write
from gateway.servers import (
    cpu_seconds,
    gateway,
    litellm_proxy,
    llama_cpp_server,
    llamacpp_engine,
    scripted_engine,
)

_LIMIT_S = 120.0
_GRACE_S = 20
_USAGE = {"include_usage": True}
# A stream with a first token after 50 ms and 20 more, 10 ms apart; and an answer that is there at once.
_SCRIPT = {
    "answers": [
        {"match": "stream", "chunks": [" word"] * 21, "ttft_s": 0.05, "gaps_s": [0.01], "prompt_tokens": 8},
        {"chunks": ["done"], "prompt_tokens": 8},
    ]
}
# Sixteen events that each arrive by themselves, or all at once.
_SMALL_SCRIPT = {
    "answers": [
        {"match": "stream", "chunks": [" word"] * 16, "ttft_s": 0.02, "gaps_s": [0.003], "prompt_tokens": 8},
        {"match": "burst", "chunks": [" word"] * 16, "prompt_tokens": 8},
        {"chunks": ["done"], "prompt_tokens": 8},
    ]
}


async def in_turns(
    sides: Mapping[str, Address],
    bodies: Sequence[dict[str, Any]],
    *,
    rounds: int,
    streams: int,
    give_up_at_s: float,
) -> dict[str, list[Round]]:
    """Every side once per round, after one round of each that is thrown away; fewer when time is up.

    `give_up_at_s` is on `time.monotonic`. SystemExit when it comes before one round is whole.
    """
    done: list[dict[str, Round]] = []
    for number in range(rounds + 1):
        results: dict[str, Round] = {}
        for side, address in sides.items():
            left_s = give_up_at_s - time.monotonic()
            if left_s <= 0:
                break
            limit_s = min(_LIMIT_S, left_s)
            results[side] = await one_round(address, bodies, streams=streams, limit_s=limit_s)
            print(f"round {number} of {rounds}: {side}: {results[side].said}", flush=True)
        if number and len(results) == len(sides):
            done.append(results)
    if not done:
        raise SystemExit("the time was up before one round was whole; give --limit-s more")
    return {side: [results[side] for results in done] for side in sides}


def chat(question: str, **options: Any) -> dict[str, Any]:
    """A body without its model."""
    return {"messages": [{"role": "user", "content": question}], **options}


def latency(asked: argparse.Namespace, folder: Path) -> None:
    """Added latency at 16 streams and requests per second, over the scripted engine called directly.

    Takes about two minutes, and five with LiteLLM.
    """
    began_s, script = time.monotonic(), folder / "script.json"
    script.write_text(json.dumps(_SCRIPT))
    with ExitStack() as stack:
        engine = stack.enter_context(scripted_engine(script))
        sides = {"direct": engine}
        options = ("--parallel", "64", "--model-name", "scripted")
        sides["gateway"] = stack.enter_context(gateway(script, *options, folder=folder))
        if asked.litellm_python:
            sides["litellm"] = stack.enter_context(litellm_proxy(asked.litellm_python, engine, folder=folder))
        streamed = [chat("stream", stream=True, stream_options=_USAGE)] * asked.requests
        short = [chat("short")] * asked.requests
        run = {"rounds": asked.rounds, "streams": asked.streams}
        half_s = (asked.limit_s - (time.monotonic() - began_s)) / 2
        streams = asyncio.run(in_turns(sides, streamed, **run, give_up_at_s=time.monotonic() + half_s))
        answers = asyncio.run(in_turns(sides, short, **run, give_up_at_s=began_s + asked.limit_s))
    write(
        asked.output,
        "gateway-latency",
        title="What the gateway adds to a request",
        setup={**run, "requests per round": asked.requests},
        tables={
            "Streams": [latency_row(streams, side, "direct") for side in sides],
            "Short answers": [rate_row(answers, side, "direct", unit="requests") for side in sides],
        },
    )


def cpu(asked: argparse.Namespace, folder: Path) -> None:
    """CPU time of the gateway's own process per request; holds on a machine that does other things, too.

    Takes about half a minute.
    """
    script = folder / "script.json"
    script.write_text(json.dumps(_SMALL_SCRIPT))
    bodies = {
        "stream of 16 events": chat("stream", stream=True, stream_options=_USAGE),
        "16 events at once": chat("burst", stream=True, stream_options=_USAGE),
        "short answer": chat("short"),
    }
    with gateway(script, "--parallel", "64", "--model-name", "scripted", folder=folder) as side:
        costs_ms = {
            kind: asyncio.run(_cpu_ms(side, [body] * asked.requests, asked.rounds, asked.streams))
            for kind, body in bodies.items()
        }
    write(
        asked.output,
        "gateway-cpu",
        title="CPU time of the gateway per request",
        setup={"rounds": asked.rounds, "streams": asked.streams, "requests per round": asked.requests},
        tables={"Gateway": [{"request": kind, "cpu_ms": spread(ms)} for kind, ms in costs_ms.items()]},
    )


async def _cpu_ms(side: Address, bodies: Sequence[dict[str, Any]], rounds: int, streams: int) -> list[float]:
    """Milliseconds per request, round by round, after one that is thrown away."""
    assert side.process_id is not None
    costs_ms: list[float] = []
    for _ in range(rounds + 1):
        before_s = cpu_seconds(side.process_id)
        done = await one_round(side, bodies, streams=streams, limit_s=_LIMIT_S)
        if len(done.good) < len(bodies):
            raise SystemExit(f"{len(bodies) - len(done.good)} requests failed")
        costs_ms.append((cpu_seconds(side.process_id) - before_s) * 1000 / len(bodies))
    return costs_ms[1:]


def lookup(asked: argparse.Namespace, folder: Path) -> None:
    """Time of a request that a store of labels answers, and of one that it does not; about half a minute."""
    script, store = folder / "script.json", folder / "labels.sqlite"
    script.write_text(json.dumps(_SMALL_SCRIPT))
    fill(store, asked.labels)
    with gateway(script, "--model-name", "scripted", "--lookup", str(store), folder=folder) as side:
        report(asked, asyncio.run(rounds_of(side, asked)))


def chaos(asked: argparse.Namespace, folder: Path) -> None:
    """Counts of what becomes of requests when engines are killed, clients leave, or too many come; 90 s."""
    write_rows(run_all(folder), asked.output)


def generation(asked: argparse.Namespace, folder: Path) -> None:
    """Tokens per second through the gateway, from its engine directly, and from llama_cpp.server.

    Without MODEL a random one of some 30 M parameters is made first. Takes less than 5 minutes.
    """
    give_up_at_s = time.monotonic() + asked.limit_s
    model: Path = asked.model or random_gguf(folder)
    body = chat("Tell me a long story.", max_tokens=asked.tokens, temperature=0.0)
    body |= {"stream": True, "stream_options": _USAGE}
    tables: dict[str, Any] = {}
    for left, clients in zip(range(len(asked.clients), 0, -1), asked.clients, strict=True):
        # What is left of the time is shared by what is left to do.
        share_s = (give_up_at_s - time.monotonic()) / left
        bodies = [body] * (asked.requests * clients)
        with ExitStack() as stack:
            sides = _generating(asked, model, clients, folder, stack)
            give_up_s = time.monotonic() + share_s
            turns = in_turns(sides, bodies, rounds=asked.rounds, streams=clients, give_up_at_s=give_up_s)
            done = asyncio.run(turns)
        rows = [rate_row(done, side, "direct", unit="tokens") for side in sides]
        tables[f"{clients} clients"] = rows
    write(
        asked.output,
        "gateway-generation",
        title="Generation through the gateway",
        setup={"model": model.name, "threads": asked.threads, "tokens": asked.tokens, "rounds": asked.rounds},
        tables=tables,
    )


def _generating(
    asked: argparse.Namespace, model: Path, clients: int, folder: Path, stack: ExitStack
) -> dict[str, Address]:
    options = ("--threads", str(asked.threads), "--parallel", str(clients))
    engine = llamacpp_engine(model, threads=asked.threads, parallel=clients, folder=folder)
    sides = {
        "direct": stack.enter_context(engine),
        "gateway": stack.enter_context(gateway(model, *options, folder=folder)),
    }
    if asked.llama_cpp_python:
        peer = llama_cpp_server(asked.llama_cpp_python, model, threads=asked.threads, folder=folder)
        sides["llama_cpp.server"] = stack.enter_context(peer)
    return sides


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m gateway", description=__doc__)
    kinds = parser.add_subparsers(required=True)
    for run, rounds, requests, limit_s in (
        (latency, 7, 320, 420.0),
        (cpu, 7, 320, 120.0),
        (lookup, 7, 500, 120.0),
        (chaos, 0, 0, 240.0),
        (generation, 5, 2, 270.0),
    ):
        one = kinds.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        one.set_defaults(run=run)
        if run is not chaos:
            one.add_argument("--rounds", type=int, default=rounds)
            one.add_argument(
                "--requests", type=int, default=requests, help="per round (generation: per client)"
            )
        one.add_argument("--output", type=Path, default=Path("results"))
        one.add_argument("--limit-s", type=float, default=limit_s, help="no round begins after it")
        _add_own(one, run)
    asked = parser.parse_args()
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(math.ceil(asked.limit_s) + _GRACE_S)
    with tempfile.TemporaryDirectory(prefix="gateway-") as folder:
        asked.run(asked, Path(folder))


def _add_own(one: argparse.ArgumentParser, run: Callable[..., None]) -> None:
    if run in (latency, cpu):
        one.add_argument("--streams", type=int, default=16)
    if run is latency:
        one.add_argument("--litellm-python", type=Path, help="Python of an environment with litellm[proxy]")
    if run is lookup:
        one.add_argument("--labels", type=int, default=10_000)
    if run is generation:
        one.add_argument("model", type=Path, nargs="?", help="a GGUF file; made at random if not given")
        one.add_argument("--threads", type=int, default=1)
        one.add_argument("--tokens", type=int, default=24)
        one.add_argument("--clients", type=int, nargs="+", default=[1, 8])
        one.add_argument("--llama-cpp-python", type=Path, help="Python with llama-cpp-python[server]")


def _give_up(*_: object) -> None:
    raise SystemExit("the time is up")


if __name__ == "__main__":
    main()
