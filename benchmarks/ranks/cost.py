"""What rank timing costs: two engines side by side, one timed and one not, asked in turns."""

import math
import statistics
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from decant.stats import paired_difference
from ranks.served import CLIENTS, Client, Served

TOKENS = 32

# The ranks of an engine that has nothing to do spin for one second and then sleep.
_QUIET_S = 1.5
_SEED = 0


@dataclass(frozen=True, slots=True)
class Pair:
    """One round: tokens per second with timing and without."""

    on: float
    off: float


class Side:
    """One server and the connections of its clients."""

    def __init__(self, served: Served, stack: ExitStack) -> None:
        self._clients = [stack.enter_context(Client(served)) for _ in range(CLIENTS)]
        self._pool = stack.enter_context(ThreadPoolExecutor(CLIENTS))

    def tokens_per_s(self, requests: int) -> float:
        """Of `requests` answers in a closed loop, once the machine is quiet."""
        time.sleep(_QUIET_S)
        each = math.ceil(requests / CLIENTS)

        def work(client: Client) -> int:
            return sum(client.stream(TOKENS).tokens for _ in range(each))

        began_s = time.perf_counter()
        tokens = sum(self._pool.map(work, self._clients))
        return tokens / (time.perf_counter() - began_s)


def in_turns(on: Side, off: Side, *, rounds: int, requests: int) -> Generator[Pair]:
    """Rounds of both, each round in the other order than the one before; the first is thrown away."""
    for number in range(rounds + 1):
        sides = (on, off) if number % 2 else (off, on)
        found = {side: side.tokens_per_s(requests) for side in sides}
        if number:
            yield Pair(found[on], found[off])


def ratio_line(pairs: Sequence[Pair], *, requests: int) -> str:
    """The geometric mean of the rounds' ratios, with a bootstrap interval over rounds."""
    difference = paired_difference(
        [math.log(pair.off) for pair in pairs], [math.log(pair.on) for pair in pairs], seed=_SEED
    )
    ratio, low, high = (
        math.exp(value) for value in (difference.mean, difference.interval.low, difference.interval.high)
    )
    rates = [f"{statistics.median(side):.0f}" for side in zip(*((p.on, p.off) for p in pairs), strict=True)]
    told = f"Throughput with rank timing on is {ratio:.3f} of off ({low:.3f} to {high:.3f}, 95 %; medians"
    sides = f"{len(pairs)} rounds of {requests} answers of at most {TOKENS} tokens on each side, in turns"
    told += f" {rates[0]} and {rates[1]} tokens/s): {sides}, {CLIENTS} clients."
    return told
