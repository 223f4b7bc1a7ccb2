"""`python -m gateway latency|cpu|lookup|generation`: what the gateway costs, and what others cost beside it.

Rounds take turns between the sides, so that what the machine does meanwhile hits all of them. Run it from
`benchmarks/` on a machine that does nothing else.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gateway.client import Address, Round, one_round
from gateway.lookup import fill, report, rounds_of
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
    sides: Mapping[str, Address], bodies: Sequence[dict[str, Any]], *, rounds: int, streams: int
) -> dict[str, list[Round]]:
    """Every side once per round, after one round of each that is thrown away."""
    done: dict[str, list[Round]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, address in sides.items():
            result = await one_round(address, bodies, streams=streams, limit_s=_LIMIT_S)
            if number:
                done[side].append(result)
    return done


def chat(question: str, **options: Any) -> dict[str, Any]:
    """A body without its model."""
    return {"messages": [{"role": "user", "content": question}], **options}


def latency(asked: argparse.Namespace, folder: Path) -> None:
    """Added latency at 16 streams and requests per second, over the scripted engine called directly."""
    script = folder / "script.json"
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
        streams = asyncio.run(in_turns(sides, streamed, **run))
        answers = asyncio.run(in_turns(sides, short, **run))
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


def generation(asked: argparse.Namespace, folder: Path) -> None:
    """Tokens per second through the gateway, from its engine directly, and from llama_cpp.server."""
    model: Path = asked.model
    body = chat("Tell me a long story.", max_tokens=asked.tokens, temperature=0.0)
    body |= {"stream": True, "stream_options": _USAGE}
    tables: dict[str, Any] = {}
    for clients in asked.clients:
        with ExitStack() as stack:
            options = ("--threads", str(asked.threads), "--parallel", str(clients))
            sides = {
                "direct": stack.enter_context(
                    llamacpp_engine(model, threads=asked.threads, parallel=clients, folder=folder)
                ),
                "gateway": stack.enter_context(gateway(model, *options, folder=folder)),
            }
            if asked.llama_cpp_python:
                peer = llama_cpp_server(asked.llama_cpp_python, model, threads=asked.threads, folder=folder)
                sides["llama_cpp.server"] = stack.enter_context(peer)
            bodies = [body] * (asked.requests * clients)
            done = asyncio.run(in_turns(sides, bodies, rounds=asked.rounds, streams=clients))
        rows = [rate_row(done, side, "direct", unit="tokens") for side in sides]
        tables[f"{clients} clients"] = rows
    write(
        asked.output,
        "gateway-generation",
        title="Generation through the gateway",
        setup={"model": model.name, "threads": asked.threads, "tokens": asked.tokens, "rounds": asked.rounds},
        tables=tables,
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m gateway", description=__doc__)
    kinds = parser.add_subparsers(required=True)
    for name, run, requests in (
        ("latency", latency, 320),
        ("cpu", cpu, 320),
        ("lookup", lookup, 500),
        ("generation", generation, 2),
    ):
        one = kinds.add_parser(name, help=run.__doc__)
        one.set_defaults(run=run)
        one.add_argument("--rounds", type=int, default=7)
        one.add_argument("--requests", type=int, default=requests, help="per round (generation: per client)")
        one.add_argument("--output", type=Path, default=Path("results"))
        if run is lookup:
            one.add_argument("--labels", type=int, default=10_000)
        if run in (latency, cpu):
            one.add_argument("--streams", type=int, default=16)
        if run is latency:
            one.add_argument(
                "--litellm-python", type=Path, help="Python of an environment with litellm[proxy]"
            )
        if run is generation:
            one.add_argument("model", type=Path, help="a GGUF file")
            one.add_argument("--threads", type=int, default=1)
            one.add_argument("--tokens", type=int, default=64)
            one.add_argument("--clients", type=int, nargs="+", default=[1, 8])
            one.add_argument("--llama-cpp-python", type=Path, help="Python with llama-cpp-python[server]")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gateway-") as folder:
        asked.run(asked, Path(folder))


if __name__ == "__main__":
    main()
