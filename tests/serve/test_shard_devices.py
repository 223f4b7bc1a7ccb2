"""From a device's events to a request's timing: only vLLM and the device are stand-ins."""

import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from decant_serve.shards.collector import ShardCollector, ShardSource
from decant_serve.shards.cuda_events import EventRecorder, event_method
from decant_serve.shards.ledger import Marks
from decant_serve.shards.recorder import StepHead
from decant_serve.shards.recording import FOLDER_VARIABLE, Method
from decant_serve.shards.steps import RankStep
from decant_serve.shards.worker import RecordingWorker

MARKS = Marks(received_s=0.0, admitted_s=0.0, ended_s=1.0)
LAUNCH_MS = 0.01


@dataclass
class Device:
    """Work is launched in no time and done in order; `host_ms` is the host's clock."""

    host_ms: float = 0.0
    busy_until_ms: float = 0.0
    is_capturing: bool = False

    def work(self, duration_ms: float) -> None:
        """Launches a kernel of that length."""
        self.host_ms += LAUNCH_MS
        self.busy_until_ms = max(self.busy_until_ms, self.host_ms) + duration_ms

    def now_ns(self) -> int:
        return round(self.host_ms * 1e6)


@dataclass
class Event:
    """Passes when the device has done what was launched before it."""

    device: Device
    at_ms: float = 0.0

    def record(self) -> None:
        self.device.host_ms += LAUNCH_MS
        self.at_ms = self.device.busy_until_ms = max(self.device.busy_until_ms, self.device.host_ms)

    def query(self) -> bool:
        assert not self.device.is_capturing, "a query spoils the capture that is under way"
        return self.at_ms <= self.device.host_ms

    def elapsed_time(self, end_event: "Event", /) -> float:
        return end_event.at_ms - self.at_ms


@dataclass
class Group:
    """vLLM's tensor-parallel group, whose collectives take their time on the device."""

    device: Device
    rank_in_group: int = 0
    world_size: int = 2

    def _all_reduce_out_place(self, value: int) -> int:
        self.device.work(2.0)
        return value

    def _all_gather_out_place(self, value: int) -> int:
        return value

    def _reduce_scatter_out_place(self, value: int) -> int:
        return value

    def gather(self, value: int) -> int:
        return value


@dataclass
class Scheduled:
    """One step as vLLM's scheduler gives it."""

    num_scheduled_tokens: dict[str, int]
    scheduled_new_reqs: list[Any] = field(default_factory=list)
    scheduled_cached_reqs: Any = field(
        default_factory=lambda: SimpleNamespace(req_ids=[], num_computed_tokens=[])
    )
    finished_req_ids: set[str] = field(default_factory=set)


class VllmWorker:
    """Stands where vLLM's GPU worker stands; it launches and never waits."""

    device: Device
    group: Group

    def compile_or_warm_up_model(self) -> None:
        """Steps through the worker's own methods, and then a capture, as in vLLM."""
        self.execute_model(Scheduled({"warm-up": 8}))
        self.sample_tokens(None)
        self.device.is_capturing = True
        self.group._all_reduce_out_place(1)
        self.device.is_capturing = False

    def execute_model(self, scheduler_output: Scheduled) -> None:
        self.device.work(5.0)
        self.group._all_reduce_out_place(1)
        self.device.work(1.0)

    def sample_tokens(self, grammar_output: object) -> str:
        self.device.work(0.5)
        return f"tokens of {grammar_output}"


class Worker(RecordingWorker, VllmWorker):
    """The two together, on one rank's device."""

    def __init__(self, device: Device, group: Group, *, splits: bool) -> None:
        self.device, self.group = device, group
        self._method = Method(event_method(splits=splits).name, self._make, splits=splits)

    def decant_method(self) -> Method:
        return self._method

    def _make(self, rank: int, emit: Any, drop: Any) -> EventRecorder:
        device = self.device
        self.recorder = EventRecorder(
            rank, make_event=lambda: Event(device), now=device.now_ns, emit=emit, drop=drop
        )
        return self.recorder


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Warms up two ranks, each in a "process" with its own tensor-parallel group."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))

    def make(*, splits: bool) -> list[Worker]:
        workers: list[Worker] = []
        for rank in range(2):
            device = Device()
            group = Group(device, rank_in_group=rank)
            state = ModuleType("vllm.distributed.parallel_state")
            monkeypatch.setattr(state, "get_tp_group", lambda group=group: group, raising=False)
            monkeypatch.setitem(sys.modules, "vllm.distributed.parallel_state", state)
            workers.append(Worker(device, group, splits=splits))
            workers[-1].compile_or_warm_up_model()
        return workers

    return make


def run(workers: list[Worker], steps: int) -> None:
    """Launches steps one after another, as asynchronous scheduling does, before any of them is over."""
    for number in range(steps):
        for worker in workers:
            worker.execute_model(Scheduled({"chatcmpl-mine-0a1b2c3d": 1}))
            worker.sample_tokens(number)


@pytest.mark.parametrize(("splits", "method"), [(True, "cuda_events"), (False, "cuda_events_whole_step")])
def test_steps_on_a_device_become_a_request_s_timing(
    ranks: Any, tmp_path: Path, *, splits: bool, method: str
) -> None:
    workers = ranks(splits=splits)
    collector = ShardCollector(ShardSource(tmp_path, ranks=2))
    run(workers, 3)
    assert collector.timing("mine", MARKS) is None
    for worker in workers:
        worker.device.host_ms = 100.0
        worker.recorder.poll()
    timing = collector.timing("mine", MARKS)
    assert timing is not None
    assert (timing.method, timing.steps) == (method, 3)
    rank = timing.ranks[1]
    in_collectives_s = 3 * 0.002 if splits else 0.0
    assert rank.comm_s + rank.wait_s == pytest.approx(in_collectives_s)
    assert rank.forward_s == pytest.approx(3 * 0.0085, rel=0.02)
    assert collector.state()["broken_sums"] == 0


def test_the_host_s_time_of_a_step_is_that_of_the_promptest_look() -> None:
    device, steps = Device(), list[RankStep]()
    recorder = EventRecorder(
        0, make_event=lambda: Event(device), now=device.now_ns, emit=steps.append, drop=lambda: None
    )
    ended_ms: list[float] = []
    for number, late_ms in enumerate((2.0, 0.0, 1.5)):
        recorder.begin(StepHead(number, 1, ()))
        device.work(5.0)
        recorder.end()
        ended_ms.append(device.busy_until_ms)
        device.host_ms = device.busy_until_ms + late_ms
        recorder.poll()
    late_ms = [step.end_ns / 1e6 - ended for step, ended in zip(steps, ended_ms, strict=True)]
    assert late_ms == pytest.approx([2.0, 0.0, 0.0], abs=1e-6)


def test_the_gpu_worker_splits_steps_only_where_python_issues_every_collective(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vllm_worker = ModuleType("vllm.v1.worker.gpu_worker")
    monkeypatch.setattr(vllm_worker, "Worker", VllmWorker, raising=False)
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.gpu_worker", vllm_worker)
    worker = importlib.import_module("decant_serve.shards.gpu_worker").GpuWorker()
    methods: dict[tuple[bool, bool], str] = {}
    for eager, split in ((True, False), (False, False), (True, True)):
        worker.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(enforce_eager=eager),
            parallel_config=SimpleNamespace(use_ubatching=split),
        )
        methods[eager, split] = worker.decant_method().name
    whole = "cuda_events_whole_step"
    assert methods == {(True, False): "cuda_events", (False, False): whole, (True, True): whole}
    del sys.modules["decant_serve.shards.gpu_worker"]
