"""The batches of a gateway: each is checked, asked behind live traffic and written out, through restarts.

A batch's state is one JSON file, its requests lie in a request store: a gateway that was killed goes on with
what was not answered.
"""

import asyncio
import fcntl
import json
import logging
import os
import time
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from decant.errors import EndpointError
from decant.files import write_json
from decant.store import Label, RequestStore, process_owner
from decant_serve.admission import IN_BACKGROUND
from decant_serve.background import Answered, ask, unlimited_key
from decant_serve.batch_objects import Batch
from decant_serve.batch_work import BatchWork
from decant_serve.json_folder import read_objects
from decant_serve.stored_files import Clock, FileBox, new_id

_log = logging.getLogger(__name__)

# An engine that is restarted or a remote endpoint that is busy comes back; anything else is an answer.
_TRIED_AGAIN = frozenset({429, 500, 502, 503})
_TRIES = 8
_LONGEST_WAIT_S = 30.0
_LEASE_S = 7 * 86_400.0  # the folder has one gateway, whose death ends its leases


@dataclass(slots=True)
class _Job:
    """A batch that is being run; `stopped` is set when no more requests are to be asked."""

    batch: Batch
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Batches:
    """All batches of one folder, which belongs to one gateway at a time."""

    def __init__(self, folder: Path, *, concurrency: int, clock: Clock = time.time) -> None:
        self._folder = folder / "batches"
        self._clock = clock
        self._concurrency = concurrency
        self._lock = _locked(folder)
        self._folder.mkdir(exist_ok=True)
        self.files = FileBox(folder / "files", clock=clock)
        self._store = RequestStore.open(folder / "requests.sqlite")
        kept = (Batch(**fields) for fields in read_objects(self._folder))
        self._jobs = {batch.id: _Job(batch) for batch in kept}
        self._sequence = max((job.batch.sequence for job in self._jobs.values()), default=0)
        self._tasks: asyncio.TaskGroup | None = None
        self._app: ASGIApp | None = None
        self._models: Collection[str] = ()
        self._closing = asyncio.Event()

    @asynccontextmanager
    async def running(self, app: ASGIApp, models: Collection[str]) -> AsyncGenerator[None]:
        """Runs batches through the routes of `app` for as long as the context lasts; then lets them rest."""
        self._app, self._models = app, models
        try:
            async with asyncio.TaskGroup() as self._tasks:
                for job in self._jobs.values():
                    self._start(job)
                try:
                    yield
                finally:
                    self.close()
        finally:
            await asyncio.to_thread(self._store.close)
            os.close(self._lock)

    def close(self) -> None:
        """No request is asked any more, and those in flight are let go: a later gateway asks them again."""
        self._closing.set()
        for job in self._jobs.values():
            job.stopped.set()

    async def create(self, body: dict[str, Any], owner: str | None) -> Batch:
        """A new batch, on the disk when this returns, and then run; ApiFault for what it cannot be."""
        self._sequence += 1
        batch = Batch.asked(
            body, batch_id=new_id("batch_"), owner=owner, now=int(self._clock()), sequence=self._sequence
        )
        job = _Job(batch)
        await self._keep(job, batch)
        self._jobs[batch.id] = job
        self._start(job)
        return batch

    def get(self, batch_id: str, owner: str | None) -> Batch | None:
        """The batch, for its owner."""
        job = self._jobs.get(batch_id)
        return job.batch if job is not None and job.batch.owner == owner else None

    def listed(self, owner: str | None) -> list[Batch]:
        """An owner's batches, the newest first."""
        own = [job.batch for job in self._jobs.values() if job.batch.owner == owner]
        return sorted(own, key=lambda batch: (batch.created_at, batch.sequence), reverse=True)

    async def cancel(self, batch_id: str) -> Batch:
        """Stops a batch that has not ended; what was answered will be in its files."""
        job = self._jobs[batch_id]
        batch = job.batch
        if batch.status in ("validating", "in_progress"):
            batch = batch.at("cancelling", self._clock())
            job.stopped.set()
            await self._keep(job, batch)
        return batch

    def _start(self, job: _Job) -> None:
        if self._tasks is not None and not job.batch.has_ended and not self._closing.is_set():
            self._tasks.create_task(self._run(job))

    async def _run(self, job: _Job) -> None:
        IN_BACKGROUND.set(True)
        try:
            await self._advance(job)
        except Exception:  # noqa: BLE001 - a job's boundary: logged, and the other batches do not suffer
            # It stays as it is on the disk, and the next start goes on with it.
            _log.exception("batch=%s event=batch-stopped", job.batch.id)

    async def _advance(self, job: _Job) -> None:
        if job.batch.status == "validating":
            await self._validate(job)
        if job.batch.status in ("in_progress", "cancelling") and job.batch.total:
            await self._ask_all(job)
        if not job.batch.has_ended and not self._closing.is_set():
            await self._finish(job)

    async def _validate(self, job: _Job) -> None:
        registered = await asyncio.to_thread(self._work(job).register, self._models)
        checked = replace(job.batch, total=registered.total, model=registered.model)
        if registered.problems:
            errors = [problem.to_wire() for problem in registered.problems]
            await self._keep(job, replace(job.batch, errors=errors).at("failed", self._clock()))
        elif checked.status == "cancelling":
            await self._keep(job, checked)
        else:
            await self._keep(job, checked.at("in_progress", self._clock()))

    async def _ask_all(self, job: _Job) -> None:
        work = self._work(job)
        completed, failed = await asyncio.to_thread(work.counts)
        job.batch = replace(job.batch, completed=completed, failed=failed)
        if job.batch.status == "cancelling":
            return
        queue: asyncio.Queue[Label | None] = asyncio.Queue(maxsize=1)
        left_s = max(0.0, job.batch.expires_at - self._clock())
        expiry = asyncio.get_running_loop().call_later(left_s, job.stopped.set)
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(self._concurrency, job.batch.total)):
                    workers.create_task(self._serve_queue(job, work, queue))
                await self._feed(job, work, queue)
        finally:
            expiry.cancel()

    async def _feed(self, job: _Job, work: BatchWork, queue: asyncio.Queue[Label | None]) -> None:
        owner = process_owner()
        for keys in work.chunks():
            while not job.stopped.is_set():
                leased = await asyncio.to_thread(
                    self._store.lease, self._concurrency, owner, _LEASE_S, keys=keys
                )
                if not leased:
                    break
                for label in leased:
                    await queue.put(label)
        for _ in range(min(self._concurrency, job.batch.total)):
            await queue.put(None)

    async def _serve_queue(self, job: _Job, work: BatchWork, queue: asyncio.Queue[Label | None]) -> None:
        while (label := await queue.get()) is not None:
            request_id = new_id("batch_req_")
            answered = None if job.stopped.is_set() else await self._ask(job, label, request_id)
            if answered is None:
                await asyncio.to_thread(work.give_back, label.key)
                continue
            is_answer = await asyncio.to_thread(work.record, label.key, request_id, answered)
            counted = {
                "completed": job.batch.completed + is_answer,
                "failed": job.batch.failed + (not is_answer),
            }
            job.batch = replace(job.batch, **counted)

    async def _ask(self, job: _Job, label: Label, request_id: str) -> Answered | None:
        """The answer or the last refusal; None for one that was stopped."""
        assert self._app is not None
        body, key = json.dumps(label.request).encode(), unlimited_key(job.batch.owner)
        for tries in range(1, _TRIES + 1):
            answered = await ask(
                self._app, job.batch.endpoint, body, request_id=request_id, key=key, stopped=job.stopped
            )
            if answered.status == 200:
                return answered
            if job.stopped.is_set():
                return None
            if answered.status not in _TRIED_AGAIN or tries == _TRIES:
                return answered
            await _sleep(min(_LONGEST_WAIT_S, 0.25 * 2**tries), job.stopped)
        raise AssertionError("the last try returns")

    async def _finish(self, job: _Job) -> None:
        work, batch = self._work(job), job.batch
        unanswered = batch.total - batch.completed - batch.failed
        if batch.status != "cancelling" and not unanswered:
            batch = batch.at("finalizing", self._clock())
            await self._keep(job, batch)
        ended = "cancelled" if batch.status == "cancelling" else "expired" if unanswered else "completed"
        made = await asyncio.to_thread(work.write_files, ended)
        await self._keep(job, replace(batch, **made).at(ended, self._clock()))
        await asyncio.to_thread(work.forget)

    def _work(self, job: _Job) -> BatchWork:
        return BatchWork(self._store, self.files, job.batch)

    async def _keep(self, job: _Job, batch: Batch) -> None:
        """The batch as it is from now on; on the disk when this returns, or something newer is."""
        job.batch = batch
        async with job.writing:
            path = self._folder / f"{batch.id}.json"
            await asyncio.to_thread(write_json, path, job.batch.to_fields())


async def _sleep(wait_s: float, stopped: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(wait_s):
            await stopped.wait()
    except TimeoutError:
        return


def _locked(folder: Path) -> int:
    """An open file that holds the folder for this process until it ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EndpointError(f"{folder}: cannot keep batches there ({error.strerror})") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        message = f"{folder}: another `decant serve` runs its batches; give each a folder of its own"
        raise EndpointError(message) from None
    return lock
