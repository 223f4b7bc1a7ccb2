"""What a rank records: laps between marks, on a clock and on events that pass when they are told to."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from decant_serve.shards.collectives import hook_collectives
from decant_serve.shards.cuda_events import EventRecorder
from decant_serve.shards.recorder import ClockRecorder, PromptLengths, StepHead
from decant_serve.shards.recording import FOLDER_VARIABLE, Place, Recording
from decant_serve.shards.ring import RingReader, RingWriter
from decant_serve.shards.steps import KINDS, RankStep, read_payload
from decant_serve.shards.worker import RecordingWorker

HEAD = StepHead(0, 1, ())


class Ticks:
    """A clock that goes on by a given time at each reading."""

    def __init__(self, *steps_ns: int) -> None:
        self._now = 0
        self._steps: Iterator[int] = iter(steps_ns)

    def __call__(self) -> int:
        self._now += next(self._steps, 1)
        return self._now


@dataclass
class Event:
    """A device event: it gets its time when it is recorded, and passes when the device has come there."""

    device: "Device"
    at_ms: float = 0.0

    def record(self) -> None:
        self.device.launched_ms += self.device.next_ms
        self.at_ms = self.device.launched_ms

    def query(self) -> bool:
        return self.at_ms <= self.device.done_ms

    def elapsed_time(self, end_event: "Event", /) -> float:
        return end_event.at_ms - self.at_ms


@dataclass
class Device:
    """Work is launched at once and done later."""

    launched_ms: float = 0.0
    done_ms: float = 0.0
    next_ms: float = 0.0


class Group:
    """A process group with vLLM's four methods, as its first rank sees it."""

    def __init__(self, world_size: int) -> None:
        self.rank_in_group, self.world_size = 0, world_size

    def _all_reduce_out_place(self, value: int) -> int:
        return value + 1

    def _all_gather_out_place(self, value: int) -> int:
        return self._all_reduce_out_place(value)

    def _reduce_scatter_out_place(self, value: int) -> int:
        return value

    def gather(self, value: int) -> int:
        return value


@dataclass
class Scheduled:
    """A step as vLLM's scheduler hands it to a worker."""

    num_scheduled_tokens: dict[str, int]
    scheduled_new_reqs: list[Any] = field(default_factory=list)
    scheduled_cached_reqs: Any = None
    finished_req_ids: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.scheduled_cached_reqs = self.scheduled_cached_reqs or Cached([], [])


class VllmWorker:
    """Stands where vLLM's worker stands: it has no output before it samples, and fails when it is told to."""

    fails = False

    def compile_or_warm_up_model(self) -> str:
        """Steps of its own, as vLLM has them before it captures graphs."""
        self.execute_model(Scheduled({"warm-up": 8}))
        self.sample_tokens(None)
        return "seconds"

    def execute_model(self, scheduler_output: Scheduled) -> str | None:
        if self.fails:
            raise RuntimeError("out of memory")
        return None if scheduler_output.num_scheduled_tokens else "nothing to do"

    def sample_tokens(self, grammar_output: object) -> str:
        return f"tokens of {grammar_output}"


class Worker(RecordingWorker, VllmWorker):
    """The two together, as in vLLM's processes."""


@dataclass
class Cached:
    req_ids: list[str]
    num_computed_tokens: list[int]


@dataclass
class New:
    req_id: str
    prompt_len: int
    num_computed_tokens: int


def test_a_step_is_split_at_its_collectives_and_a_pause_counts_for_nobody() -> None:
    steps: list[RankStep] = []
    recorder = ClockRecorder(0, clock=Ticks(100, 10, 5, 20, 1000, 7), emit=steps.append)
    recorder.begin(HEAD)
    recorder.enter(0)
    recorder.leave()
    recorder.pause()
    recorder.resume()
    recorder.end()
    (step,) = steps
    assert (step.compute_ns, step.durations_ns, step.forward_ns) == (10 + 20 + 7, (5,), 42)
    assert step.end_ns - step.begin_ns == 1042
    assert step.is_whole


def test_a_collective_inside_another_and_one_outside_of_a_step_are_not_counted_twice() -> None:
    steps: list[RankStep] = []
    recorder = ClockRecorder(0, clock=Ticks(), emit=steps.append)
    group, other, alone = Group(2), Group(2), Group(1)
    for hooked in (group, alone):
        hook_collectives(hooked, recorder)
    group.gather(1)
    recorder.begin(HEAD)
    assert group._all_gather_out_place(1) == 2
    other._all_reduce_out_place(1)
    alone._all_reduce_out_place(1)
    recorder.end()
    assert [KINDS[kind] for kind in steps[0].kinds] == ["all_gather"]
    assert steps[0].is_whole


def test_a_group_without_a_known_method_is_left_as_it_was() -> None:
    strange = type("Strange", (), {"gather": Group.gather, "world_size": 2})()
    with pytest.raises(AttributeError):
        hook_collectives(strange, ClockRecorder(0, clock=Ticks(), emit=lambda _: None))
    assert vars(strange) == {}


def test_events_are_read_when_the_device_has_passed_them_and_never_before() -> None:
    device, steps = Device(next_ms=2.0), list[RankStep]()
    recorder = EventRecorder(
        1,
        make_event=lambda: Event(device),
        now=lambda: round(device.done_ms * 1e6),
        emit=steps.append,
        drop=lambda: None,
    )
    for number in range(2):
        recorder.begin(StepHead(number, 1, ()))
        recorder.enter(0)
        recorder.leave()
        recorder.pause()
        recorder.resume()
        recorder.end()
    assert steps == []
    device.done_ms = 12.0
    recorder.poll()
    assert [step.step for step in steps] == [0]
    device.done_ms = 1000.0
    recorder.poll()
    assert [step.step for step in steps] == [0, 1]
    assert (steps[0].compute_ns, steps[0].durations_ns) == (6_000_000, (2_000_000,))
    assert (steps[0].begin_ns, steps[1].begin_ns) == (2_000_000, 14_000_000)
    assert all(step.is_whole for step in steps)


def test_steps_that_a_device_never_finishes_are_dropped_and_counted() -> None:
    device, dropped = Device(next_ms=1.0), list[int]()
    recorder = EventRecorder(
        0,
        make_event=lambda: Event(device),
        now=lambda: 0,
        emit=lambda _: None,
        drop=lambda: dropped.append(1),
    )
    for number in range(300):
        recorder.begin(StepHead(number, 1, ()))
        recorder.end()
    assert 0 < len(dropped) < 300


def test_a_prompt_is_prefill_until_it_is_computed_and_a_cached_part_is_not_read_again() -> None:
    prompts = PromptLengths()
    prompts.start("a", length=10, computed=6)
    assert prompts.is_prefill("a")
    prompts.progress("a", 10)
    assert not prompts.is_prefill("a")


def test_the_first_rank_names_the_requests_of_each_step(tmp_path: Path) -> None:
    steps: list[RankStep] = []
    recorder = ClockRecorder(0, clock=Ticks(), emit=steps.append)
    recording = Recording(Place(0, 2), recorder, RingWriter(tmp_path / "r.ring", note={}))
    recording.begin(Scheduled({"a": 5}, scheduled_new_reqs=[New("a", 5, 0)]))
    recording.executed(is_over=False)
    recording.resume()
    recording.sampled()
    recording.begin(Scheduled({}, finished_req_ids={"b"}))
    recording.executed(is_over=True)
    recording.begin(Scheduled({"a": 1}, scheduled_cached_reqs=Cached(["a"], [5])))
    recording.executed(is_over=True)
    told = [(step.step, step.members[0].tokens, step.members[0].is_prefill) for step in steps]
    assert told == [(0, 5, True), (1, 1, False)]


def test_a_worker_answers_as_before_and_its_steps_are_recorded(tmp_path: Path) -> None:
    steps: list[RankStep] = []
    worker = Worker()
    recorder = ClockRecorder(0, clock=Ticks(), emit=steps.append)
    worker.decant_recording = Recording(Place(0, 1), recorder, RingWriter(tmp_path / "r.ring", note={}))
    assert worker.execute_model(Scheduled({})) == "nothing to do"
    assert worker.execute_model(Scheduled({"a": 5})) is None
    assert worker.sample_tokens("grammar") == "tokens of grammar"
    worker.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        worker.execute_model(Scheduled({"a": 1}))
    assert [step.members[0].tokens for step in steps] == [5]


def test_a_worker_that_is_given_no_folder_works_without_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    worker = Worker()
    assert worker.compile_or_warm_up_model() == "seconds"
    assert worker.decant_recording is None
    assert worker.execute_model(Scheduled({"a": 1})) is None
    assert worker.sample_tokens(1) == "tokens of 1"


def test_a_fault_in_the_recording_turns_it_off_and_lets_the_worker_go_on(tmp_path: Path) -> None:
    ring = RingWriter(tmp_path / "r.ring", note={})
    reader = RingReader(tmp_path / "r.ring")

    def broken() -> int:
        raise RuntimeError("no clock")

    recording = Recording(Place(1, 2), ClockRecorder(1, clock=broken, emit=lambda _: None), ring)
    recording.begin(Scheduled({"a": 1}))
    recording.executed(is_over=True)
    assert [read_payload(payload) for payload in reader.read()] == ["RuntimeError: no clock"]


def test_a_fault_within_a_collective_does_not_reach_the_worker(tmp_path: Path) -> None:
    ring = RingWriter(tmp_path / "r.ring", note={})
    readings = iter([1, 2])
    recorder = ClockRecorder(0, clock=lambda: next(readings), emit=lambda _: None)
    recording, group = Recording(Place(0, 2), recorder, ring), Group(2)
    hook_collectives(group, recording)
    recording.begin(Scheduled({"a": 1}))
    assert [group.gather(value) for value in (1, 2)] == [1, 2]
    assert read_payload(RingReader(tmp_path / "r.ring").read()[0]) == "StopIteration: "
