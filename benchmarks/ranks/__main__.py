"""`python -m ranks stragglers|cost|waterfall MODEL --engine-python PYTHON`: what two ranks did, measured.

`stragglers` (about 3 minutes) keeps one rank busy for 5 and 20 ms before each forward and prints who computed
and who waited, whether every step sums to its forward, and what of a client's latency is unexplained. `cost`
(about 10 minutes) prints throughput with rank timing over throughput without. `waterfall` (about 2 minutes)
writes one request's waterfall, as text and as the page shows it, into a folder. Each ends after --limit-s.

Run it from `benchmarks/` on a machine that does nothing else: on a CPU every rank spins on a core of its own.
"""

import argparse
import os
import platform
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from ranks.cost import Pair, Side, in_turns, ratio_line
from ranks.delays import delay_table, residual_lines, slow_down, sum_lines
from ranks.picture import write_waterfall
from ranks.served import Client, ask, serving

_SHOWN_DELAY_S = 0.02
_SHOWN_TOKENS = 32


def stragglers(asked: argparse.Namespace, folder: Path) -> None:
    """The table of delays, the sums, and the residual."""
    with serving(asked, folder / "slow", delayed=True) as served:
        answers = slow_down(served, asked.rounds)
        every = [answer for found in answers.values() for answer in found]
        _say(*delay_table(answers), "", *sum_lines(served), "", *residual_lines(every))


def cost(asked: argparse.Namespace, folder: Path) -> None:
    """Throughput on over off; each start brings both engines up anew, in the other order."""
    pairs: list[Pair] = []
    try:
        for start in range(asked.starts):
            _one_start(asked, folder, start, pairs)
    finally:
        if len(pairs) > 1:
            _say("", ratio_line(pairs, requests=asked.requests))


def _one_start(asked: argparse.Namespace, folder: Path, start: int, pairs: list[Pair]) -> None:
    """Both engines up, and all rounds of them; each is printed as it comes."""
    with ExitStack() as stack:
        sides: dict[bool, Side] = {}
        for timed in (True, False) if start % 2 else (False, True):
            served = stack.enter_context(serving(asked, folder / f"timed-{timed}", timed=timed))
            sides[timed] = Side(served, stack)
        for pair in in_turns(sides[True], sides[False], rounds=asked.rounds, requests=asked.requests):
            pairs.append(pair)
            _say(f"start {start + 1}, round {len(pairs)}: on {pair.on:.0f}, off {pair.off:.0f} tokens/s")


def waterfall(asked: argparse.Namespace, folder: Path) -> None:
    """One request over ranks of which one is slow."""
    with serving(asked, folder / "shown", delayed=True) as served:
        with Client(served) as client:
            ask(client, served, _SHOWN_TOKENS)
            served.delay.write_text(str(_SHOWN_DELAY_S))
            record = ask(client, served, _SHOWN_TOKENS).record
        _say(*write_waterfall(served, record["request_id"], asked.output))


def _say(*lines: str) -> None:
    print("\n".join(lines), flush=True)


def _out_of_time(*_: object) -> None:
    raise SystemExit("the time limit is over; what was measured until then is printed above")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("stragglers", "cost", "waterfall"))
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("--engine-python", required=True, help="an interpreter with vLLM")
    parser.add_argument("--ranks", type=int, default=2, help="tensor_parallel_size")
    parser.add_argument(
        "--rounds", type=int, default=20, help="answers under each delay; rounds of each start"
    )
    parser.add_argument("--starts", type=int, default=2, help="starts of both engines (cost)")
    parser.add_argument("--requests", type=int, default=64, help="answers per round and side (cost)")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for the waterfall")
    parser.add_argument("--limit-s", type=int, default=900, help="hard limit of time")
    return parser.parse_args()


def main() -> None:
    """Runs one part."""
    asked = _arguments()
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(asked.limit_s)
    _say(f"`python -m ranks {' '.join(sys.argv[1:])}` on {platform.machine()}, {os.cpu_count()} cores", "")
    with tempfile.TemporaryDirectory() as name:
        {"stragglers": stragglers, "cost": cost, "waterfall": waterfall}[asked.part](asked, Path(name))


if __name__ == "__main__":
    main()
