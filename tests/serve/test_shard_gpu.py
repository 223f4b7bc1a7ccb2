"""The event recorder on a real device; nobody has run this yet."""

import time
from typing import Any

import pytest
import torch

from decant_serve.shards.cuda_events import event_recorder
from decant_serve.shards.recorder import StepHead
from decant_serve.shards.steps import RankStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def test_a_device_s_steps_lie_within_the_host_s_time_and_sum_to_the_device_s() -> None:
    steps: list[RankStep] = []
    recorder = event_recorder(0, steps.append, lambda: None)
    matrix: Any = torch.randn(4096, 4096, device="cuda")
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    began_ns = time.perf_counter_ns()
    marks[0].record()
    recorder.begin(StepHead(0, 1, ()))
    matrix = matrix @ matrix
    recorder.enter(0)
    matrix = matrix @ matrix
    recorder.leave()
    recorder.end()
    marks[1].record()
    torch.cuda.synchronize()
    give_up_at_s = time.monotonic() + 10
    while not steps and time.monotonic() < give_up_at_s:
        time.sleep(0.01)
    (step,) = steps
    assert step.is_whole
    assert step.forward_ns / 1e6 == pytest.approx(marks[0].elapsed_time(marks[1]), rel=0.05, abs=0.1)
    assert began_ns <= step.begin_ns <= step.end_ns <= time.perf_counter_ns()
