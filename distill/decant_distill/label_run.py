"""One run of a labeling job: every open request asked, in as many rounds as its answers call for."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from itertools import count

from decant.endpoint import Endpoint
from decant.errors import DataError
from decant.progress import Progress
from decant.store import RequestStore
from decant.wire_client import open_load_client
from decant_distill.label_job import Dispatcher, Registered, register, wanted_keys
from decant_distill.label_pace import Pace
from decant_distill.label_progress import Estimate, JobProgress, choose, estimate
from decant_distill.label_requests import Job
from decant_distill.label_send import Sender
from decant_distill.label_spend import Prices, Purse
from decant_distill.label_watch import Watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a run did: `reused` answers were there before, and took `latency_before_s` one after another."""

    requests: int
    reused: int
    unmetered: int
    wall_s: float
    latency_before_s: float


class LabelRun:
    """A job, its store and the endpoint, for one run; `budget_usd` covers earlier runs too."""

    def __init__(
        self,
        job: Job,
        store: RequestStore,
        endpoint: Endpoint,
        *,
        prices: Prices | None,
        budget_usd: float | None,
        concurrency: int,
        max_attempts: int,
    ) -> None:
        self._job = job
        self._store = store
        self._endpoint = endpoint
        self._prices = prices
        self._budget_usd = budget_usd
        self._concurrency = concurrency
        self._max_attempts = max_attempts

    async def ask_all(self, *, timeout_s: float) -> Ran:
        """Asks until no request is open; EndpointError or StageError when that cannot be."""
        first = registered = await asyncio.to_thread(register, self._job, self._store)
        purse = self._purse(first)
        started_s = time.perf_counter()
        # Answers that do not agree open new requests: a round each, until none do.
        for number in count(1):
            if not registered.open:
                break
            await self._round(registered, purse, number=number, timeout_s=timeout_s)
            if not self._job.grows:
                break
            registered = await asyncio.to_thread(register, self._job, self._store, reopen=False)
        return Ran(
            requests=registered.requests,
            reused=first.reused,
            unmetered=purse.unmetered,
            wall_s=time.perf_counter() - started_s,
            latency_before_s=first.latency_s,
        )

    async def estimate(self, size: int, *, timeout_s: float) -> Estimate:
        """Asks `size` of the open requests, keeps their answers, and says what the others will take."""
        registered = await asyncio.to_thread(register, self._job, self._store)
        chosen = await asyncio.to_thread(choose, self._job, self._store, size)
        if not chosen:
            raise DataError(f"{self._job.data}: no request is open, so there is nothing to estimate")
        started_s = time.perf_counter()
        await self._round(registered, self._purse(registered), number=1, timeout_s=timeout_s, only=chosen)
        wall_s = time.perf_counter() - started_s
        known = await asyncio.to_thread(self._store.get_many, chosen)
        answered = [label for label in known.values() if label.status == "done"]
        if not answered:
            raise DataError(
                f"{self._job.data}: none of the {len(chosen)} requests was answered; see the store"
            )
        return estimate(answered, still_open=registered.open - len(chosen), wall_s=wall_s)

    def _purse(self, registered: Registered) -> Purse:
        return Purse(self._prices, budget_usd=self._budget_usd, paid_usd=registered.paid_usd)

    async def _round(
        self,
        registered: Registered,
        purse: Purse,
        *,
        number: int,
        timeout_s: float,
        only: Collection[str] | None = None,
    ) -> None:
        client = open_load_client(
            self._endpoint.base_url, api_key=self._endpoint.api_key, timeout_s=timeout_s
        )
        pace, watch = Pace(self._concurrency), Watch(concurrency=self._concurrency)
        to_ask = registered.open if only is None else len(only)
        progress = Progress(
            registered.requests if only is None else to_ask,
            unit="labels",
            label="label" if number == 1 else f"label, round {number}",
            start=registered.requests - registered.open if only is None else 0,
        )
        async with client:
            with progress:
                sender = Sender(client, pace=pace, watch=watch, max_attempts=self._max_attempts)
                shown = JobProgress(progress, purse=purse, pace=pace, to_ask=to_ask)
                dispatcher = Dispatcher(
                    store=self._store, sender=sender, purse=purse, watch=watch, progress=shown
                )
                wanted = partial(wanted_keys, self._job, self._store, only)
                await dispatcher.run(self._job, wanted, concurrency=self._concurrency)
