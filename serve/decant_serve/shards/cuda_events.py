"""Times one rank's steps on a GPU: events in the stream, read later by `query`, never waited for.

The host only launches work, so its clock says nothing. An event is recorded wherever `ClockRecorder` would
read the clock; a step's events are read when the last of them has passed.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from decant_serve.shards.recorder import StepHead
from decant_serve.shards.recording import Method
from decant_serve.shards.steps import RankStep

_POLL_S = 0.002
_PENDING_LIMIT = 256
_ANCHOR_AGE_NS = 10 * 10**9
# What two clocks may come apart in that time: 20 millionths.
_DRIFT_NS = 200_000

Lap = Literal["compute", "collective", "away"]


class Event(Protocol):
    """What is used of torch.cuda.Event."""

    def record(self) -> None:
        """Puts the event into the current stream."""
        ...

    def query(self) -> bool:
        """Whether the device has passed it."""
        ...

    def elapsed_time(self, end_event: Any, /) -> float:
        """Milliseconds from this event to another."""
        ...


@dataclass(slots=True)
class _Step:
    head: StepHead
    events: list[Event]
    laps: list[Lap] = field(default_factory=list["Lap"])
    kinds: list[int] = field(default_factory=list[int])


class EventRecorder:
    """Laps between events. `poll` reads the steps that are over; what waits behind too many is dropped.

    `now` is the host's clock in nanoseconds; the device's own durations carry it from step to step.
    """

    def __init__(
        self,
        rank: int,
        *,
        make_event: Callable[[], Event],
        now: Callable[[], int],
        emit: Callable[[RankStep], None],
        drop: Callable[[], None],
    ) -> None:
        self._drop = drop
        self._rank, self._make_event, self._now, self._emit = rank, make_event, now, emit
        self._open: _Step | None = None
        self._depth = 0
        self._away = False
        self._pending: deque[_Step] = deque()
        self._free: list[Event] = []
        self._anchor: tuple[Event, int] | None = None
        self._ended_ns = 0
        self._lock = threading.Lock()

    def begin(self, head: StepHead) -> None:
        """Starts a step and reads those that are over."""
        self.poll()
        self._open, self._depth, self._away = _Step(head, []), 0, False
        self._mark(None)

    def pause(self) -> None:
        """Ends a lap of computing."""
        if self._open and not self._away:
            self._mark("compute")
            self._away = True

    def resume(self) -> None:
        """What lies between is nobody's time."""
        if self._open and self._away:
            self._mark("away")
            self._away = False

    def enter(self, kind: int) -> None:
        """Ends a lap of computing, unless within another collective."""
        if self._open is None or self._away:
            return
        self._depth += 1
        if self._depth == 1:
            self._mark("compute")
            self._open.kinds.append(kind)

    def leave(self) -> None:
        """Ends a lap in a collective."""
        if self._depth:
            self._depth -= 1
            if self._depth == 0:
                self._mark("collective")

    def end(self) -> None:
        """The step's launch is over; its record comes when the device is through."""
        step = self._open
        if step is None:
            return
        self._mark("away" if self._away else "compute")
        self._open = None
        with self._lock:
            if len(self._pending) >= _PENDING_LIMIT:
                self._drop()
                return
            self._pending.append(step)

    def abandon(self) -> None:
        """Forgets the step."""
        self._open, self._depth = None, 0

    def poll(self) -> None:
        """Hands over every step that the device is through with, in order."""
        with self._lock:
            while self._pending and self._pending[0].events[-1].query():
                step = self._pending.popleft()
                self._emit(self._read(step))
                self._recycle(step)

    def _mark(self, lap: Lap | None) -> None:
        assert self._open is not None
        event = self._free.pop() if self._free else self._make_event()
        event.record()
        self._open.events.append(event)
        if lap is not None:
            self._open.laps.append(lap)

    def _read(self, step: _Step) -> RankStep:
        pairs = zip(step.events, step.events[1:], strict=False)
        laps_ns = [(lap, _ns(a, b)) for lap, (a, b) in zip(step.laps, pairs, strict=True)]
        compute_ns = sum(ns for lap, ns in laps_ns if lap == "compute")
        durations_ns = tuple(ns for lap, ns in laps_ns if lap == "collective")
        span_ns = sum(ns for _, ns in laps_ns)
        begin_ns = self._begin_ns(step.events[0], span_ns)
        self._ended_ns = begin_ns + span_ns
        return RankStep(
            rank=self._rank,
            step=step.head.step,
            checksum=step.head.checksum,
            begin_ns=begin_ns,
            end_ns=self._ended_ns,
            forward_ns=compute_ns + sum(durations_ns),
            compute_ns=compute_ns,
            kinds=bytes(step.kinds),
            durations_ns=durations_ns,
            members=step.head.members,
        )

    def _begin_ns(self, first: Event, span_ns: int) -> int:
        """When the step began on the device, on the host's clock.

        A step is found to be over some time after it was: of all such findings since the anchor, the
        earliest is the nearest. Anchored anew every few seconds, as long times lose digits and clocks drift.
        """
        found_ns = self._now() - span_ns
        if self._anchor is None:
            self._anchor = (first, found_ns)
        anchor, anchor_ns = self._anchor
        since_ns = _ns(anchor, first) if anchor is not first else 0
        anchor_ns = min(anchor_ns, found_ns - since_ns)
        self._anchor = (anchor, anchor_ns)
        if since_ns > _ANCHOR_AGE_NS:
            self._anchor = (first, anchor_ns + since_ns + _DRIFT_NS)
        # A stream runs its steps one after another.
        return max(anchor_ns + since_ns, self._ended_ns)

    def _recycle(self, step: _Step) -> None:
        anchor = self._anchor[0] if self._anchor else None
        self._free += [event for event in step.events if event is not anchor]


def _ns(begin: Event, end: Event) -> int:
    return round(begin.elapsed_time(end) * 1e6)


def event_method(*, splits: bool) -> Method:
    """Events around whole steps, and with `splits` around each collective.

    Without: a CUDA graph replays without Python, and micro-batches issue their collectives from two threads.
    """
    return Method("cuda_events" if splits else "cuda_events_whole_step", event_recorder, splits=splits)


def event_recorder(rank: int, emit: Callable[[RankStep], None], drop: Callable[[], None]) -> EventRecorder:
    """A recorder over CUDA events, with a thread that reads the last steps when no other follows."""
    import torch

    def make_event() -> Event:
        return torch.cuda.Event(enable_timing=True)

    recorder = EventRecorder(rank, make_event=make_event, now=time.perf_counter_ns, emit=emit, drop=drop)
    threading.Thread(target=_poll_forever, args=(recorder,), name="decant-shards", daemon=True).start()
    return recorder


def _poll_forever(recorder: EventRecorder) -> None:
    while True:
        time.sleep(_POLL_S)
        recorder.poll()
