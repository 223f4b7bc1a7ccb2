"""Times one rank's steps by the host's clock: exact where the host computes, as on a CPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from decant_serve.shards.steps import Member, RankStep


@dataclass(frozen=True, slots=True)
class StepHead:
    """What is known of a step before it runs."""

    step: int
    checksum: int
    members: tuple[Member, ...]


class Recorder(Protocol):
    """Marks in the course of a step. Between `pause` and `resume` the worker does something else."""

    def begin(self, head: StepHead) -> None:
        """A step begins."""
        ...

    def pause(self) -> None:
        """The worker hands over, and the step is not over."""
        ...

    def resume(self) -> None:
        """The worker goes on with the step."""
        ...

    def enter(self, kind: int) -> None:
        """A collective begins; nothing happens outside of a step."""
        ...

    def leave(self) -> None:
        """The collective is over."""
        ...

    def end(self) -> None:
        """The step is over."""
        ...

    def abandon(self) -> None:
        """The step failed and is not recorded."""
        ...


class ClockRecorder:
    """Laps of one clock, in nanoseconds. A collective inside another is part of the outer one."""

    def __init__(self, rank: int, *, clock: Callable[[], int], emit: Callable[[RankStep], None]) -> None:
        self._rank, self._clock, self._emit = rank, clock, emit
        self._head: StepHead | None = None
        self._running = False
        self._depth = 0
        self._began = self._span_began = self._lap = 0
        self._forward = self._compute = 0
        self._kinds: list[int] = []
        self._durations: list[int] = []

    def begin(self, head: StepHead) -> None:
        """Starts the first span; a step that was left open is forgotten."""
        self._head, self._running, self._depth = head, True, 0
        self._forward = self._compute = 0
        self._kinds, self._durations = [], []
        self._began = self._span_began = self._lap = self._clock()

    def pause(self) -> None:
        """Ends a span."""
        if self._running:
            self._end_span(self._clock())

    def resume(self) -> None:
        """Starts another span of the same step."""
        if self._head is not None and not self._running:
            self._running = True
            self._span_began = self._lap = self._clock()

    def enter(self, kind: int) -> None:
        """Ends a lap of computing."""
        if not self._running:
            return
        self._depth += 1
        if self._depth == 1:
            now = self._clock()
            self._compute += now - self._lap
            self._lap = now
            self._kinds.append(kind)

    def leave(self) -> None:
        """Ends a lap in a collective."""
        if self._depth == 0:
            return
        self._depth -= 1
        if self._depth == 0:
            now = self._clock()
            self._durations.append(now - self._lap)
            self._lap = now

    def end(self) -> None:
        """Ends the last span and hands the record over."""
        head = self._head
        if head is None:
            return
        now = self._clock()
        if self._running:
            self._end_span(now)
        self._head = None
        self._emit(self._record(head, now))

    def abandon(self) -> None:
        """Forgets the step."""
        self._head, self._running, self._depth = None, False, 0

    def _end_span(self, now: int) -> None:
        self._compute += now - self._lap
        self._forward += now - self._span_began
        self._running = False

    def _record(self, head: StepHead, now: int) -> RankStep:
        return RankStep(
            rank=self._rank,
            step=head.step,
            checksum=head.checksum,
            begin_ns=self._began,
            end_ns=now,
            forward_ns=self._forward,
            compute_ns=self._compute,
            kinds=bytes(self._kinds),
            durations_ns=tuple(self._durations),
            members=head.members,
        )


def step_head(
    step: int, scheduled: Sequence[tuple[str, int]], *, checksum: int, prompts: "PromptLengths | None"
) -> StepHead:
    """The head of a step; without `prompts` (every rank but the first) it names no members."""
    if prompts is None:
        return StepHead(step, checksum, ())
    members = tuple(Member(name, tokens, prompts.is_prefill(name)) for name, tokens in scheduled)
    return StepHead(step, checksum, members)


class PromptLengths:
    """Which requests still read their prompt: prompt lengths, and how many tokens were computed before."""

    def __init__(self) -> None:
        self._lengths: dict[str, int] = {}
        self._computed: dict[str, int] = {}

    def start(self, request_id: str, *, length: int, computed: int) -> None:
        """A new request, with what a prefix cache holds of it."""
        self._lengths[request_id], self._computed[request_id] = length, computed

    def progress(self, request_id: str, computed: int) -> None:
        """How far a request had come before this step."""
        self._computed[request_id] = computed

    def finish(self, request_id: str) -> None:
        """A request that is over."""
        self._lengths.pop(request_id, None)
        self._computed.pop(request_id, None)

    def is_prefill(self, request_id: str) -> bool:
        """Whether this step's tokens of the request begin within its prompt."""
        return self._computed.get(request_id, 0) < self._lengths.get(request_id, 0)
