"""A labeling job through a provider's Batch API: submitted, waited for, taken, and found again after a kill.

The store remembers what is out: each batch's requests are leased to it before it is submitted, under a name
that goes along as the batch's metadata. A run that finds such leases looks for the batch at the provider, so
that a kill at any moment neither loses a batch nor submits one twice.
"""

import asyncio
import hashlib
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from decant.endpoint import Endpoint
from decant.errors import DecantError, EndpointError
from decant.files import write_jsonl
from decant.lease import is_dead, process_owner
from decant.progress import Progress
from decant.store import RequestStore
from decant_distill.batch_api import BatchApi, NotSure
from decant_distill.label_batch import URL, Taken, batch_line, check_budget, open_requests, take_lines
from decant_distill.label_job import Registered, register
from decant_distill.label_plan import asks_in, plan
from decant_distill.label_requests import Job
from decant_distill.label_run import Ran
from decant_distill.label_spend import Prices

# Longer than a provider takes for a batch: until then its requests are nobody else's.
_LEASE_S = 8 * 86_400.0
# By then whoever leased a batch's requests has submitted it, and the provider's list shows it.
_SUBMITTED_WITHIN_S = 900.0
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_METADATA = "decant_batch"
_BYTES_AT_MOST = 100 * 10**6  # providers take twice as much


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """How the job is cut into batches, and how often the provider is asked for them."""

    size: int
    poll_s: float
    prices: Prices | None
    budget_usd: float | None


class BatchLabeling:
    """One run of a job through one endpoint's Batch API."""

    def __init__(
        self, job: Job, store: RequestStore, endpoint: Endpoint, api: BatchApi, options: BatchOptions
    ) -> None:
        self._job = job
        self._store = store
        self._api = api
        self._options = options
        # Batches of another endpoint are not to be looked for here.
        self._prefix = f"batch/{hashlib.sha256(endpoint.base_url.encode()).hexdigest()[:8]}/"
        self._own = process_owner()

    async def run(self) -> Ran:
        """Returns when nothing is open; after an EndpointError or StageError the same command goes on."""
        first = registered = await asyncio.to_thread(register, self._job, self._store)
        started_s = time.perf_counter()
        for number in count(1):
            if not registered.open:
                break
            with self._progress(registered, number) as progress:
                await self._round(registered, progress)
            if not self._job.grows:
                break
            registered = await asyncio.to_thread(register, self._job, self._store, reopen=False)
        return Ran(
            requests=registered.requests,
            reused=first.reused,
            unmetered=0,
            wall_s=time.perf_counter() - started_s,
            latency_before_s=0.0,
        )

    def _progress(self, registered: Registered, number: int) -> Progress:
        return Progress(
            registered.requests,
            unit="labels",
            label="label" if number == 1 else f"label, round {number}",
            start=registered.requests - registered.open,
        )

    async def _round(self, registered: Registered, progress: Progress) -> None:
        """Takes up the batches that are out, then submits what is open, and waits for all of them."""
        left_usd = self._options.budget_usd and self._options.budget_usd - registered.paid_usd
        check = open_requests(self._job, self._store)
        await asyncio.to_thread(check_budget, check, prices=self._options.prices, left_usd=left_usd)
        try:
            async with asyncio.TaskGroup() as tasks:
                for owner in await asyncio.to_thread(self._out):
                    tasks.create_task(self._see_through(owner, progress))
                async for owner in self._new():
                    tasks.create_task(self._see_through(owner, progress))
        except BaseExceptionGroup as group:
            raise next((one for one in group.exceptions if isinstance(one, DecantError)), group) from None

    def _out(self) -> list[str]:
        return [owner for owner in self._store.lease_owners() if owner.startswith(self._prefix)]

    async def _new(self) -> AsyncIterator[str]:
        """Leases what is open, batch by batch; each name comes when its batch is full."""
        owner, size, size_bytes = self._new_owner(), 0, 0
        chunks = plan(self._job, self._store.get_many)
        while chunk := await asyncio.to_thread(next, chunks, None):
            keys = [ask.key for ask in asks_in(chunk)]
            while leased := await asyncio.to_thread(
                self._store.lease, self._options.size - size, owner, _LEASE_S, keys=keys
            ):
                size += len(leased)
                size_bytes += sum(len(str(label.request)) for label in leased)
                if size >= self._options.size or size_bytes >= _BYTES_AT_MOST:
                    yield owner
                    owner, size, size_bytes = self._new_owner(), 0, 0
        if size:
            yield owner

    def _new_owner(self) -> str:
        return f"{self._prefix}{uuid.uuid4().hex}/{self._own}"

    async def _see_through(self, owner: str, progress: Progress) -> None:
        """From wherever a batch stands to its results in the store."""
        batch = await self._submitted(owner)
        answered = 0
        while True:
            counts: dict[str, int] = batch.get("request_counts") or {}
            ended = counts.get("completed", 0) + counts.get("failed", 0)
            progress.advance(max(0, ended - answered))
            answered = max(answered, ended)
            if batch["status"] in _ENDED:
                break
            await asyncio.sleep(self._options.poll_s)
            batch = await self._api.batch(batch["id"])
        await self._take(owner, batch)

    async def _submitted(self, owner: str) -> dict[str, Any]:
        """The owner's batch at the provider, submitted now if nobody has and nobody else is about to."""
        part = owner.removeprefix(self._prefix).partition("/")[0]
        while True:
            found = await self._found(part)
            if found is not None:
                return found
            if not await asyncio.to_thread(self._may_submit, owner):
                await asyncio.sleep(self._options.poll_s)
                continue
            try:
                return await self._submit(owner, part)
            except NotSure:
                await asyncio.sleep(self._options.poll_s)

    async def _found(self, part: str) -> dict[str, Any] | None:
        async for batch in self._api.batches():
            metadata: dict[str, Any] = batch.get("metadata") or {}
            if metadata.get(_METADATA) == part:
                return batch
        return None

    def _may_submit(self, owner: str) -> bool:
        process = owner.removeprefix(self._prefix).partition("/")[2]
        if process == self._own or is_dead(process):
            return True
        leased_at = next((label.updated_at for label in self._store.held_by(owner)), None)
        return leased_at is not None and time.time() - leased_at > _SUBMITTED_WITHIN_S

    async def _submit(self, owner: str, part: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="decant-batch-") as folder:
            path = Path(folder) / f"decant-{part}.jsonl"
            lines = map(batch_line, self._store.held_by(owner))
            await asyncio.to_thread(write_jsonl, path, lines)
            file_id = await self._api.upload(path)
        return await self._api.create(file_id, endpoint=URL, metadata={_METADATA: part})

    async def _take(self, owner: str, batch: dict[str, Any]) -> None:
        """Records a batch's results; what has none is a failed request, which the next run asks again."""
        if batch["status"] == "failed":
            await asyncio.to_thread(self._give_back, owner)
            errors: dict[str, Any] = batch.get("errors") or {}
            faults: list[dict[str, Any]] = errors.get("data") or []
            why = faults[0].get("message") if faults else "it does not say why"
            raise EndpointError(f"the provider refused the batch {batch['id']}: {why}")
        for name in ("output_file_id", "error_file_id"):
            if batch.get(name):
                await self._take_file(str(batch[name]))
        await asyncio.to_thread(self._fail_rest, owner, batch)

    async def _take_file(self, file_id: str) -> Taken:
        with tempfile.TemporaryDirectory(prefix="decant-batch-") as folder:
            path = Path(folder) / "results.jsonl"
            await self._api.download(file_id, path)
            return await asyncio.to_thread(
                take_lines, self._job, self._store, path, prices=self._options.prices
            )

    def _give_back(self, owner: str) -> None:
        for label in self._store.held_by(owner):
            self._store.fail(label.key, "batch_refused", "the provider refused its batch", retryable=True)

    def _fail_rest(self, owner: str, batch: dict[str, Any]) -> None:
        words = f"the batch {batch['id']} ended as {batch['status']} without a result for it"
        for label in self._store.held_by(owner):
            self._store.fail(label.key, "batch_missing", words, retryable=False)
