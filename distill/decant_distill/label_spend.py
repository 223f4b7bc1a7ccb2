"""What a labeling job costs, and the budget that it never exceeds."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from decant.endpoint import EndpointConfig
from decant.wire import Usage

# A chat template wraps every message in a few tokens of its own.
_TEMPLATE_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """$ per token, and per second of the hardware that serves; either may be all there is."""

    usd_per_prompt_token: float = 0.0
    usd_per_completion_token: float = 0.0
    usd_per_s: float = 0.0

    @classmethod
    def of(cls, endpoint: EndpointConfig) -> "Prices | None":
        """The endpoint's prices; None when it names none, and then no cost is claimed."""
        per_million_prompt = endpoint.usd_per_million_prompt_tokens
        per_million_completion = endpoint.usd_per_million_completion_tokens
        if per_million_prompt is None and per_million_completion is None and endpoint.price_per_hour is None:
            return None
        return cls(
            usd_per_prompt_token=(per_million_prompt or 0.0) / 1e6,
            usd_per_completion_token=(per_million_completion or 0.0) / 1e6,
            usd_per_s=(endpoint.price_per_hour or 0.0) / 3600,
        )

    def worst_case_usd(self, request: Mapping[str, Any]) -> float:
        """More than the tokens of one request can cost: no token is shorter than a byte."""
        contents = [message["content"] for message in request["messages"]]
        prompt_tokens = sum(len(text.encode("utf-8", "replace")) + _TEMPLATE_TOKENS for text in contents)
        completion_usd = request["max_tokens"] * self.usd_per_completion_token
        return prompt_tokens * self.usd_per_prompt_token + completion_usd

    def tokens_usd(self, usage: Usage) -> float:
        """What the tokens of one answer cost."""
        prompt_usd = usage.prompt_tokens * self.usd_per_prompt_token
        return prompt_usd + usage.completion_tokens * self.usd_per_completion_token


class Purse:
    """Reserves the worst case before a request is sent and settles the true cost after.

    Hardware that is paid by the hour is charged to the answers: each carries the time since the one before,
    so that their costs sum to the hours paid. `paid_usd` is what earlier runs of the job paid.
    """

    def __init__(
        self,
        prices: Prices | None,
        *,
        budget_usd: float | None,
        paid_usd: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        assert prices is not None or budget_usd is None
        self.has_prices = prices is not None
        self.unmetered = 0
        self.tokens = 0
        self._prices = prices or Prices()
        self._budget_usd = float("inf") if budget_usd is None else budget_usd
        self._settled_usd = paid_usd
        self._reserved_usd: list[float] = []
        self._clock = clock
        self._charged_until_s: float | None = None
        self._settled = asyncio.Event()

    @property
    def spent_usd(self) -> float:
        """Everything paid so far, with the time that no answer was charged for yet."""
        return self._settled_usd + self._uncharged_usd

    @property
    def remaining_s(self) -> float | None:
        """For how long the budget still pays the hardware; None when nothing is paid by the hour."""
        if not self._prices.usd_per_s or self._budget_usd == float("inf"):
            return None
        return max(0.0, self._budget_usd - self.spent_usd) / self._prices.usd_per_s

    async def reserve(self, request: Mapping[str, Any]) -> bool:
        """Waits until the request surely fits in the budget; False when it never will."""
        worst_usd = self._prices.worst_case_usd(request)
        while self.spent_usd + sum(self._reserved_usd) + worst_usd > self._budget_usd:
            if not self._reserved_usd:
                return False
            await self._settled.wait()
        self._reserved_usd.append(worst_usd)
        if self._charged_until_s is None:
            self._charged_until_s = self._clock()
        return True

    def release(self, request: Mapping[str, Any]) -> None:
        """Gives back the reservation of a request that was not answered."""
        self._reserved_usd.remove(self._prices.worst_case_usd(request))
        self._settled.set()
        self._settled = asyncio.Event()

    def settle(self, request: Mapping[str, Any], usage: Usage | None) -> float | None:
        """Turns a reservation into what the answer cost; None without prices.

        An answer whose usage the endpoint does not report is charged the worst case and counts as unmetered.
        """
        self.release(request)
        if usage is not None:
            self.tokens += usage.prompt_tokens + usage.completion_tokens
        if not self.has_prices:
            return None
        worst_usd = self._prices.worst_case_usd(request)
        self.unmetered += 1 if usage is None and worst_usd else 0
        cost_usd = worst_usd if usage is None else self._prices.tokens_usd(usage)
        cost_usd += self._uncharged_usd
        self._charged_until_s = self._clock()
        self._settled_usd += cost_usd
        return cost_usd

    @property
    def _uncharged_usd(self) -> float:
        if self._charged_until_s is None:
            return 0.0
        return (self._clock() - self._charged_until_s) * self._prices.usd_per_s
