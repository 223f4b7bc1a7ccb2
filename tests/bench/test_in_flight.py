"""An open loop with a bound on what is in flight: the wait is charged, and is not the client's lateness."""

from pathlib import Path
from typing import Any

import pytest

from decant.config import load_config
from decant.errors import ConfigError
from decant_bench.bench import run
from decant_bench.bench_config import BenchConfig
from decant_bench.bench_result import BenchFolder, read_bench
from tests.bench.scripted_endpoint import Reply, ScriptedEndpoint, serving


def bench(folder: Path, server: ScriptedEndpoint, **changes: Any) -> BenchFolder:
    values: dict[str, Any] = {
        "output": folder / "out",
        "endpoint": server.config,
        "arrival": "constant",
        "rate": 100.0,
        "requests": 12,
        "in_flight": 2,
        "warmup": 0,
        "error_share": 1e6,
        "workload": {"prompt_tokens": {"mean": 4}},
    }
    run(load_config(BenchConfig, values=values | changes))
    return read_bench(folder / "out")


def test_under_overload_response_and_service_latency_part_ways(tmp_path: Path) -> None:
    with serving(lambda _: Reply(e2e_s=0.1)) as server:
        folder = bench(tmp_path, server)
    last = max(folder.timings, key=lambda timing: timing.intended_s or 0.0)

    assert server.most_at_once == 2
    assert last.response_s is not None
    assert last.service_s is not None
    # Twelve requests of 0.1 s, two at a time, due within 0.11 s: the last waits for five others.
    assert last.response_s - last.service_s > 0.3
    assert max(record.schedule_error_s or 0.0 for record in folder.records) < last.send_delay_s


def test_what_still_waits_when_the_run_ends_was_offered_and_never_sent(tmp_path: Path) -> None:
    with serving(lambda _: Reply(e2e_s=0.4)) as server:
        folder = bench(tmp_path, server, requests=12, drain_s=1.5)
    kinds = {kind: found["n"] for kind, found in folder.result.errors.items()}

    assert folder.result.counts["offered"] == 12
    assert kinds["unsent"] >= 1


def test_a_closed_loop_has_its_clients_for_that(tmp_path: Path) -> None:
    with serving() as server, pytest.raises(ConfigError, match="in_flight is for an open loop"):
        bench(tmp_path, server, arrival="closed", rate=None)
