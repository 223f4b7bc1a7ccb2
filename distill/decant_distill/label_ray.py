"""The same job on a Ray cluster: Ray Data spreads keys over workers, the store holds what became of each.

A task is a batch of keys. Its worker leases those from the store, asks, and commits each answer before it
counts; what comes back over Ray is only how many. So a task that Ray runs again, after a worker or its
machine died, finds the answers in the store and pays for none of them twice.
"""

import asyncio
import importlib
import importlib.util
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from decant.endpoint import Endpoint
from decant.errors import (
    ConfigError,
    DecantError,
    EndpointError,
    MissingExtraError,
    StageError,
    StoreError,
)
from decant.progress import Progress
from decant.store import RequestStore
from decant.wire_client import open_load_client
from decant_distill.label_batch import open_requests
from decant_distill.label_job import Dispatcher, Registered, register
from decant_distill.label_pace import Pace
from decant_distill.label_requests import Job
from decant_distill.label_run import Ran
from decant_distill.label_send import Sender
from decant_distill.label_spend import Prices, Purse
from decant_distill.label_watch import Watch

LOCAL = "local"
# Of one dataset of Ray's, whose keys its object store holds.
_KEYS_PER_ROUND = 100_000
_LEAST_PER_TASK = 64
_MOST_PER_TASK = 1000
_ROUNDS_PER_TASK = 4
# The next batch begins while the last answers of the one before are still out.
_TASKS_AT_ONCE = 2
_FAULTS: dict[str, type[DecantError]] = {"StageError": StageError, "StoreError": StoreError}


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """Where the workers are and what they may do together."""

    address: str
    workers: int
    concurrency: int
    max_attempts: int
    timeout_s: float
    prices: Prices | None
    budget_usd: float | None


def check_ray(address: str, store: str | Path, *, served: bool) -> None:
    """ConfigError for what workers on several machines cannot share; MissingExtraError without Ray."""
    if address != LOCAL and (isinstance(store, Path) or not store.startswith("postgres")):
        raise ConfigError(
            f"{store}: workers on several machines cannot share a SQLite file; "
            "give store = postgresql://USER@HOST/DATABASE, or ray = local"
        )
    if address != LOCAL and served:
        raise ConfigError(
            "endpoint.serve listens on this machine alone; serve the model where the workers reach it "
            "and give base_url and model, or ray = local"
        )
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", extra="ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a worker needs to know; it travels to its machine."""

    job: Job
    store: str | Path
    endpoint: Endpoint
    options: RayOptions


class Asker:
    """A worker: one store, one client and one pace for all the batches that it is given."""

    def __init__(self, orders: Orders) -> None:
        options = orders.options
        self._job = orders.job
        self._concurrency = max(1, options.concurrency // options.workers)
        self._store = RequestStore.open(orders.store)
        client = open_load_client(
            orders.endpoint.base_url, api_key=orders.endpoint.api_key, timeout_s=options.timeout_s
        )
        self._watch = Watch(concurrency=self._concurrency)
        pace = Pace(self._concurrency)
        self._sender = Sender(client, pace=pace, watch=self._watch, max_attempts=options.max_attempts)
        # The driver holds the budget: it hands out only what the worst case of all batches leaves room for.
        self._purse = Purse(_shared(options), budget_usd=None, paid_usd=0.0)

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, list[Any]]]:
        """Asks what is open of a batch of keys; yields one row, which says how it went."""
        keys = [str(key) for key in batch["key"]]
        unmetered, fault = self._purse.unmetered, None
        dispatcher = Dispatcher(
            store=self._store, sender=self._sender, purse=self._purse, watch=self._watch, progress=_Silent()
        )
        try:
            await dispatcher.run(self._job, partial(iter, [keys]), concurrency=self._concurrency)
        except DecantError as error:
            fault = error
        yield {
            "asked": [len(keys)],
            "unmetered": [self._purse.unmetered - unmetered],
            "fault": [str(fault) if fault else ""],
            "kind": [type(fault).__name__ if fault else ""],
        }


class _Silent:
    def advance(self, n: int = 1, **extra: object) -> None:
        """The driver shows the progress."""


async def ask_by_ray(orders: Orders, store: RequestStore) -> Ran:
    """Has Ray's workers ask until nothing is open; EndpointError or StageError when that cannot be."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(_RayLabeling(orders, store, stop=stop).run)
    finally:
        stop.set()


class _RayLabeling:
    """One run of a job by Ray's workers; `stop` ends it at the next result."""

    def __init__(self, orders: Orders, store: RequestStore, *, stop: threading.Event) -> None:
        self._orders = orders
        self._store = store
        self._stop = stop
        self._unmetered = 0

    def run(self) -> Ran:
        """Returns when nothing is open; after an EndpointError or StageError the same command goes on."""
        job, started_s = self._orders.job, time.perf_counter()
        first = registered = register(job, self._store)
        if registered.open:
            ray = _connected(self._orders.options)
            try:
                registered = self._ask_all(ray, first)
            finally:
                ray.shutdown()
        return Ran(
            requests=registered.requests,
            reused=first.reused,
            unmetered=self._unmetered,
            wall_s=time.perf_counter() - started_s,
            latency_before_s=first.latency_s,
        )

    def _ask_all(self, ray: Any, registered: Registered) -> Registered:
        progress = Progress(
            registered.requests,
            unit="labels",
            label="label",
            start=registered.requests - registered.open,
        )
        with progress:
            while registered.open and not self._stop.is_set():
                asked = 0
                for keys in _groups(self._affordable(registered.paid_usd)):
                    self._round(ray, keys, progress)
                    asked += len(keys)
                if not asked:
                    raise StageError(_out_of_money(registered))
                # Answers that do not agree open new requests, and settled ones leave room in the budget.
                registered = register(self._orders.job, self._store, reopen=False)
        return registered

    def _affordable(self, paid_usd: float) -> Iterator[str]:
        """The keys of what is open, as many as surely fit in the budget."""
        options, worst_usd = self._orders.options, paid_usd
        for label in open_requests(self._orders.job, self._store):
            if options.budget_usd is not None and options.prices is not None:
                worst_usd += options.prices.worst_case_usd(label.request)
                if worst_usd > options.budget_usd:
                    return
            yield label.key

    def _round(self, ray: Any, keys: list[str], progress: Progress) -> None:
        for row in _results(ray, keys, self._orders):
            self._unmetered += row["unmetered"]
            progress.advance(row["asked"])
            if row["fault"]:
                raise _FAULTS.get(row["kind"], EndpointError)(row["fault"])
            if self._stop.is_set():
                return


def _results(ray: Any, keys: list[str], orders: Orders) -> Iterator[dict[str, Any]]:
    """What each batch of keys came to, as it ends."""
    table: Any = importlib.import_module("pyarrow").table
    options = orders.options
    size = max(_LEAST_PER_TASK, _ROUNDS_PER_TASK * options.concurrency // options.workers)
    size = max(1, min(size, _MOST_PER_TASK, -(-len(keys) // options.workers)))
    blocks = [table({"key": keys[start : start + size]}) for start in range(0, len(keys), size)]
    pool = ray.data.ActorPoolStrategy(
        size=options.workers,
        max_tasks_in_flight_per_actor=_TASKS_AT_ONCE,
        max_concurrent_calls_per_actor=_TASKS_AT_ONCE,
    )
    dataset = ray.data.from_arrow(blocks).map_batches(
        Asker, fn_constructor_args=(orders,), batch_size=None, compute=pool, num_cpus=1
    )
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayError as error:
        raise StageError(f"Ray gave up: {str(error).splitlines()[0]}; run the same command again") from error


def _connected(options: RayOptions) -> Any:
    """Ray, connected to its cluster or with one of its own; StageError when there is none at the address."""
    # A job of ours tells nobody that it ran.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = importlib.import_module("ray")
    importlib.import_module("ray.data")
    is_local = options.address == LOCAL
    try:
        ray.init(
            address=options.address,
            include_dashboard=False if is_local else None,
            # Workers wait for answers: how many there are has nothing to do with this machine's cores.
            num_cpus=options.workers if is_local else None,
            log_to_driver=False,
            configure_logging=False,
        )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StageError(f"no Ray cluster at {options.address}: {words}; check the address") from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def _shared(options: RayOptions) -> Prices | None:
    """Prices for one worker: the hours of the hardware are charged by all of them together."""
    if options.prices is None:
        return None
    return replace(options.prices, usd_per_s=options.prices.usd_per_s / options.workers)


def _groups(keys: Iterator[str]) -> Iterator[list[str]]:
    while group := list(islice(keys, _KEYS_PER_ROUND)):
        yield group


def _out_of_money(registered: Registered) -> str:
    return (
        f"the budget does not pay another request after ${registered.paid_usd:.6g}; "
        "what was answered is kept: raise budget_usd and run again to go on"
    )
