"""What a vLLM worker of ours does beside its work: it records its steps, and never fails because of that."""

import importlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from decant_serve.shards.collectives import hook_collectives
from decant_serve.shards.recorder import ClockRecorder, PromptLengths, Recorder, step_head
from decant_serve.shards.ring import RingWriter
from decant_serve.shards.steps import RankStep, checksum_of, off_payload, step_payload

FOLDER_VARIABLE = "DECANT_SHARDS_FOLDER"
DELAY_VARIABLE = "DECANT_SHARDS_DELAY"
"""For tests only: "1:FILE" keeps rank 1 busy, at the start of each step, for the seconds that FILE says."""

_log = logging.getLogger(__name__)

MakeRecorder = Callable[[int, Callable[[RankStep], None], Callable[[], None]], Recorder]
"""From a rank, where its records go, and what counts one that is lost."""


@dataclass(frozen=True, slots=True)
class Method:
    """How a worker's steps are timed; `splits` says whether the collectives in them are."""

    name: str
    make: MakeRecorder
    splits: bool


class _NewRequest(Protocol):
    req_id: str
    num_computed_tokens: int

    @property
    def prompt_len(self) -> int: ...


class _CachedRequests(Protocol):
    req_ids: list[str]
    num_computed_tokens: list[int]


class Scheduled(Protocol):
    """What is read of vLLM's SchedulerOutput."""

    scheduled_new_reqs: list[_NewRequest]
    scheduled_cached_reqs: _CachedRequests
    num_scheduled_tokens: dict[str, int]
    finished_req_ids: set[str]


@dataclass(frozen=True, slots=True)
class Place:
    """A worker among its tensor-parallel group."""

    rank: int
    size: int


def clock_recorder(rank: int, emit: Callable[[RankStep], None], _: Callable[[], None]) -> Recorder:
    """Laps of the machine's monotonic clock, which all processes of a Linux machine share; none is lost."""
    return ClockRecorder(rank, clock=time.perf_counter_ns, emit=emit)


CLOCK = Method("clock", clock_recorder, splits=True)


class Recording:
    """One worker's records. A fault of ours turns recording off, with a line in the log, and nothing else."""

    def __init__(
        self, place: Place, recorder: Recorder, ring: RingWriter, *, delay: Path | None = None
    ) -> None:
        self._recorder: Recorder | None = recorder
        self._ring = ring
        self._delay = delay
        self._step = 0
        self._prompts = PromptLengths() if place.rank == 0 else None

    def begin(self, scheduled: Scheduled) -> None:
        """A call of `execute_model`; one without tokens is no step."""
        self._safely(lambda recorder: self._begin(recorder, scheduled))
        if self._delay is not None and scheduled.num_scheduled_tokens:
            _keep_busy(self._delay)

    def executed(self, *, is_over: bool) -> None:
        """`execute_model` returned; where it gave no output, `sample_tokens` will follow."""
        self._safely(lambda recorder: recorder.end() if is_over else recorder.pause())

    def enter(self, kind: int) -> None:
        """A collective begins."""
        # Not through `_safely`: a step has dozens of these.
        if self._recorder is not None:
            try:
                self._recorder.enter(kind)
            except Exception as error:  # noqa: BLE001 (see `_safely`)
                self._turn_off(error)

    def leave(self) -> None:
        """The collective is over."""
        if self._recorder is not None:
            try:
                self._recorder.leave()
            except Exception as error:  # noqa: BLE001 (see `_safely`)
                self._turn_off(error)

    def resume(self) -> None:
        """A call of `sample_tokens`."""
        self._safely(lambda recorder: recorder.resume())

    def sampled(self) -> None:
        """`sample_tokens` returned."""
        self._safely(lambda recorder: recorder.end())

    def abandon(self) -> None:
        """The step failed."""
        self._safely(lambda recorder: recorder.abandon())

    def _begin(self, recorder: Recorder, scheduled: Scheduled) -> None:
        prompts = self._prompts
        if prompts is not None:
            for request_id in scheduled.finished_req_ids:
                prompts.finish(request_id)
            for new in scheduled.scheduled_new_reqs:
                prompts.start(new.req_id, length=new.prompt_len, computed=new.num_computed_tokens)
            cached = scheduled.scheduled_cached_reqs
            for request_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
                prompts.progress(request_id, computed)
        tokens = list(scheduled.num_scheduled_tokens.items())
        if tokens:
            recorder.begin(step_head(self._step, tokens, checksum=checksum_of(tokens), prompts=prompts))
            self._step += 1

    def _safely(self, act: Callable[[Recorder], None]) -> None:
        if self._recorder is None:
            return
        try:
            act(self._recorder)
        except Exception as error:  # noqa: BLE001 (serving matters more than its timing)
            self._turn_off(error)

    def _turn_off(self, error: Exception) -> None:
        self._recorder = None
        self._ring.write(off_payload(f"{type(error).__name__}: {error}"))
        _log.error("event=shard-timing-off", exc_info=error)


def start_recording(method: Method) -> Recording | None:
    """Hooks into this worker's collectives and opens its ring; None, and a line in the log, if it cannot."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    try:
        return _start(method, Path(folder))
    except Exception:  # noqa: BLE001 (a vLLM whose inside looks otherwise must still serve)
        _log.exception("event=shard-timing-off")
        return None


def _start(method: Method, folder: Path) -> Recording:
    parallel_state: Any = importlib.import_module("vllm.distributed.parallel_state")
    group = parallel_state.get_tp_group()
    place = Place(group.rank_in_group, group.world_size)
    note = {"rank": place.rank, "ranks": place.size, "method": method.name, "pid": os.getpid()}
    ring = RingWriter(folder / f"rank-{place.rank}.ring", note=note)
    recorder = method.make(place.rank, lambda step: _put(ring, step), ring.drop)
    recording = Recording(place, recorder, ring, delay=_delay_file(place.rank))
    if method.splits:
        hook_collectives(group, recording)
    return recording


def _put(ring: RingWriter, step: RankStep) -> None:
    ring.write(step_payload(step))


def _delay_file(rank: int) -> Path | None:
    slow, _, file = os.environ.get(DELAY_VARIABLE, "").partition(":")
    return Path(file) if slow == str(rank) else None


def _keep_busy(delay: Path) -> None:
    """Computes for as long as the file says: a rank that slept would lend its core to the others' work."""
    # Empty for a moment while it is being written.
    until_s = time.perf_counter() + float(delay.read_text(encoding="utf-8") or 0)
    while time.perf_counter() < until_s:
        pass
