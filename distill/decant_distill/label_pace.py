"""How fast to ask: as much at once as the endpoint takes, and no faster than the limits that it tells.

The number of requests in flight halves when the endpoint refuses for load and grows by one per round of
answers (AIMD: Chiu and Jain, 1989). `x-ratelimit-*` headers fill a bucket of requests and one of tokens.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_LONGEST_WAIT_S = 1.0
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(ms|s|m|h|d))")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to send one request: when it was given, and the tokens that it may take."""

    at_s: float
    tokens: float


class Pace:
    """Gives turns to senders in one event loop; `most` may be in flight at once."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._at_once = float(most)
        self._in_flight = 0
        self._cut_s = float("-inf")
        self._closed_until_s = float("-inf")
        self._buckets = {"requests": _Bucket(), "tokens": _Bucket()}
        self._moved = asyncio.Event()

    @property
    def at_once(self) -> int:
        """How many requests may be in flight now."""
        return int(self._at_once)

    async def turn(self, tokens: float) -> Turn:
        """Waits until one more request of so many tokens may be sent."""
        while (wait_s := self._wait_s(tokens)) > 0:
            moved = self._moved
            try:
                # A clock that stands for the limits of somebody else is looked at again now and then.
                await asyncio.wait_for(moved.wait(), timeout=min(wait_s, _LONGEST_WAIT_S))
            except TimeoutError:
                continue
        now_s = self._clock()
        self._in_flight += 1
        self._buckets["requests"].take(1.0)
        self._buckets["tokens"].take(tokens)
        return Turn(now_s, tokens)

    def answered(self, turn: Turn, headers: Mapping[str, str]) -> None:
        """Ends a turn with an answer, and heeds what its headers say of the limits."""
        self._at_once = min(self._most, self._at_once + 1.0 / self._at_once)
        for name, bucket in self._buckets.items():
            bucket.tell(headers, name, self._clock())
        self.ended(turn)

    def refused(self, turn: Turn, retry_after_s: float | None) -> None:
        """Ends a turn that was refused for load: fewer at once, and nobody before the time that was told.

        Refusals of requests that were sent before the last cut are the same event, and cut no further.
        """
        now_s = self._clock()
        if turn.at_s > self._cut_s:
            self._at_once = max(1.0, self._at_once / 2)
            self._cut_s = now_s
        if retry_after_s is not None:
            self._closed_until_s = max(self._closed_until_s, now_s + retry_after_s)
        self.ended(turn)

    def ended(self, _turn: Turn) -> None:
        """Ends a turn."""
        self._in_flight -= 1
        self._moved.set()
        self._moved = asyncio.Event()

    def _wait_s(self, tokens: float) -> float:
        now_s = self._clock()
        if self._in_flight >= self.at_once:
            return _LONGEST_WAIT_S
        needs = {"requests": 1.0, "tokens": tokens}
        waits = [bucket.wait_s(needs[name], now_s) for name, bucket in self._buckets.items()]
        # One request at a time always goes: an estimate of its tokens above the limit must not stop the job.
        waits = waits if self._in_flight else [min(wait_s, _LONGEST_WAIT_S) for wait_s in waits[:1]]
        return max(self._closed_until_s - now_s, *waits, 0.0)


class _Bucket:
    """What is left of one limit, by the endpoint's last word; it fills evenly until its reset."""

    def __init__(self) -> None:
        self._left = float("inf")
        self._most = float("inf")
        self._per_s = 0.0
        self._told_s = 0.0

    def tell(self, headers: Mapping[str, str], name: str, now_s: float) -> None:
        left = _number(headers.get(f"x-ratelimit-remaining-{name}"))
        reset_s = _seconds(headers.get(f"x-ratelimit-reset-{name}"))
        if left is None or reset_s is None:
            return
        most = _number(headers.get(f"x-ratelimit-limit-{name}"))
        self._most = max(left + 1.0, most or 0.0)
        self._left, self._told_s = left, now_s
        self._per_s = (self._most - left) / max(reset_s, 0.001)

    def take(self, amount: float) -> None:
        self._left -= amount

    def wait_s(self, amount: float, now_s: float) -> float:
        if self._left == float("inf"):
            return 0.0
        level = min(self._most, self._left + self._per_s * (now_s - self._told_s))
        short = min(amount, self._most) - level
        return short / self._per_s if short > 0 else 0.0


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _seconds(text: str | None) -> float | None:
    """A duration such as `1m30s`, `120ms` or plain seconds."""
    if text is None:
        return None
    if (plain := _number(text)) is not None:
        return plain
    parts = _DURATION.findall(text)
    return sum(float(amount) * _SECONDS[unit] for amount, unit in parts) if parts else None
