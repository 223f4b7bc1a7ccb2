"""How much one API key may use per minute: token buckets that refill steadily."""

import math
import time
from collections.abc import Callable

from decant_serve.openai_errors import rate_limited


class Bucket:
    """`per_minute` units at most, refilled evenly; spending more than it holds leaves a debt."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """What it holds now; negative while a debt is paid off."""
        refilled = self._level + (now_s - self._at_s) * self.per_minute / 60
        self._level, self._at_s = min(float(self.per_minute), refilled), now_s
        return self._level

    def wait_s(self, units: float, now_s: float) -> float:
        """How long until it holds `units`; 0 when it does."""
        return max(0.0, (units - self.level(now_s)) * 60 / self.per_minute)

    def spend(self, units: float, now_s: float) -> None:
        """Takes `units` out, whatever it holds."""
        self._level = self.level(now_s) - units


class RateLimit:
    """Requests and tokens per minute; None is no limit.

    A request's tokens are known at its end only, so what it may come to is taken out when it is let in, and
    the difference is settled afterwards: a burst finds the bucket empty, however long its answers take.
    """

    def __init__(
        self,
        *,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        now_s = clock()
        self._requests = Bucket(requests_per_minute, now_s) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute, now_s) if tokens_per_minute else None

    def enter(self) -> None:
        """Takes one request out; ApiFault 429 with the time to wait when there is none."""
        now_s = self._clock()
        if self._requests:
            if wait_s := self._requests.wait_s(1, now_s):
                raise rate_limited(f"{self._requests.per_minute} requests per minute", wait_s, self.headers())
            self._requests.spend(1, now_s)

    def reserve(self, tokens: int) -> None:
        """Takes out what a request that entered may come to; ApiFault 429 gives the request itself back.

        One that asks for more than a minute's worth is let in when nothing is owed, and leaves a debt.
        """
        if not self._tokens:
            return
        now_s = self._clock()
        if wait_s := self._tokens.wait_s(min(tokens, self._tokens.per_minute), now_s):
            if self._requests:
                self._requests.spend(-1, now_s)
            raise rate_limited(f"{self._tokens.per_minute} tokens per minute", wait_s, self.headers())
        self._tokens.spend(tokens, now_s)

    def settle(self, *, reserved: int, used: int) -> None:
        """Replaces what was reserved for a finished request by what it used."""
        if self._tokens:
            self._tokens.spend(used - reserved, self._clock())

    def headers(self) -> dict[str, str]:
        """OpenAI's `x-ratelimit-` headers for the limits that there are."""
        now_s = self._clock()
        named = {"requests": self._requests, "tokens": self._tokens}
        headers: dict[str, str] = {}
        for name, bucket in named.items():
            if bucket is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level(now_s))))
        return headers
