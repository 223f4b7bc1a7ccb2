"""The gateway's side: takes the ranks' records out of their rings, joins them, and keeps them by request."""

import asyncio
import logging
import re
import shutil
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from decant_serve.shards.join import JoinedStep, Joiner
from decant_serve.shards.ledger import Marks, MemberStep, ShardTiming, shard_timing
from decant_serve.shards.ring import RingReader
from decant_serve.shards.steps import read_payload

_log = logging.getLogger(__name__)

_POLL_S = 0.05
_KEPT_REQUESTS = 4096
_SETTLE_S = 0.02
# {answer of n}_{chatcmpl|cmpl}-{x-request-id}[-{prompt}]-{8 characters of vLLM's own}
_INTERNAL_ID = re.compile(r"(?:\d+_)?(?:chatcmpl-(?P<chat>.+)|cmpl-(?P<text>.+)-\d+)-[0-9a-z]{8}")


@dataclass(frozen=True, slots=True)
class ShardSource:
    """Where an engine's ranks write, and how many there are; or why there is nothing to read."""

    folder: Path | None
    ranks: int = 1
    off_reason: str | None = None


# Every step names its requests anew.
@lru_cache(maxsize=_KEPT_REQUESTS)
def request_id_of(internal_id: str) -> str | None:
    """The x-request-id that the gateway sent, within the id that vLLM gives a request; None for any other."""
    found = _INTERNAL_ID.fullmatch(internal_id)
    return (found["chat"] or found["text"]) if found else None


class ShardCollector:
    """Reads while the engine runs; what is missing or wrong is counted in `state`, never guessed."""

    def __init__(self, source: ShardSource) -> None:
        self._source = source
        self._on_step: Callable[[JoinedStep], None] | None = None
        self._readers: dict[int, RingReader] = {}
        self._joiner = Joiner(source.ranks)
        self._requests: OrderedDict[str, list[MemberStep]] = OrderedDict()
        self._off_reason = source.off_reason
        self._method: str | None = None
        self._lost = 0
        self._unreadable = 0
        self.busy_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self, on_step: Callable[[JoinedStep], None]) -> None:
        """Begins to read, again and again, on the running loop; `on_step` gets every step once."""
        self._on_step = on_step
        if self._source.folder is not None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends reading and removes the rings."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for reader in self._readers.values():
            reader.close()
        if self._source.folder is not None:
            shutil.rmtree(self._source.folder, ignore_errors=True)

    def collect(self) -> None:
        """Takes in whatever the ranks have written by now."""
        if self._source.folder is None:
            return
        for rank in range(self._source.ranks):
            reader = self._reader(rank)
            for payload in reader.read() if reader else ():
                self._take(payload)

    def timing(self, request_id: str, marks: Marks) -> ShardTiming | None:
        """What the ranks did for one request so far; None where nothing of it is recorded."""
        self.collect()
        steps = [
            member
            for member in self._requests.get(request_id, ())
            # The same x-request-id may have come before.
            if member.step.end_s >= marks.admitted_s and member.step.begin_s <= marks.ended_s
        ]
        return shard_timing(steps, marks, method=self._method or "unknown")

    def forget(self, request_id: str) -> None:
        """A request that is over and written down."""
        self._requests.pop(request_id, None)

    async def settle(self) -> None:
        """Where records come later than their tokens, as from a GPU's events: waits until they are due."""
        if self._method is not None and self._method != "clock":
            await asyncio.sleep(_SETTLE_S)

    def state(self) -> dict[str, Any]:
        """For /health: whether ranks are timed and how, what was joined, and what was not."""
        if self._off_reason is not None:
            return {"timed": False, "reason": self._off_reason}
        rings = self._readers.values()
        return {
            "timed": True,
            "method": self._method,
            "ranks": self._source.ranks,
            "steps": self._joiner.joined,
            "broken_sums": self._joiner.broken_sums,
            "mismatched": self._joiner.mismatched,
            "incomplete": self._joiner.incomplete,
            "dropped": self._lost + sum(ring.dropped for ring in rings),
            "unreadable": self._unreadable + sum(ring.torn for ring in rings),
            "busy_s": self.busy_s,
        }

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            self.collect()

    def _reader(self, rank: int) -> RingReader | None:
        """The rank's ring; a restarted engine has made another."""
        assert self._source.folder is not None
        path = self._source.folder / f"rank-{rank}.ring"
        reader = self._readers.get(rank)
        try:
            if reader is not None and path.stat().st_ino == reader.inode:
                return reader
            fresh = RingReader(path)
        except FileNotFoundError:
            return reader
        except (OSError, ValueError) as error:
            self._turn_off(str(error))
            return None
        if reader is not None:
            for payload in reader.read():
                self._take(payload)
            self._lost += reader.dropped
            reader.close()
            # The new engine counts its steps from 0.
            self._joiner.forget_pending()
        self._readers[rank] = fresh
        self._method = str(fresh.note["method"])
        return fresh

    def _take(self, payload: bytes) -> None:
        try:
            record = read_payload(payload)
        except (ValueError, struct.error):
            self._unreadable += 1
            return
        if isinstance(record, str):
            self._turn_off(record)
            return
        joined = self._joiner.add(record)
        if joined is not None:
            self._keep(joined)

    def _keep(self, step: JoinedStep) -> None:
        self.busy_s += step.busy_s
        for member in step.members:
            request_id = request_id_of(member.request_id)
            if request_id is not None:
                taken = MemberStep(step, member.tokens, member.is_prefill)
                self._requests.setdefault(request_id, []).append(taken)
        while len(self._requests) > _KEPT_REQUESTS:
            self._requests.popitem(last=False)
        if self._on_step is not None:
            self._on_step(step)

    def _turn_off(self, reason: str) -> None:
        if self._off_reason is None:
            _log.error("event=shard-timing-off reason=%r", reason)
        self._off_reason = reason
