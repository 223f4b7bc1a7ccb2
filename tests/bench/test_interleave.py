"""Two endpoints in turns, and a run sent by two processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decant.config import load_config
from decant.errors import ConfigError
from decant_bench.bench import run as run_bench
from decant_bench.bench_config import BenchConfig
from decant_bench.bench_result import read_bench
from decant_bench.interleave import Block, InterleaveConfig, compare_blocks, order_of, run
from tests.bench.bench_runs import write_run
from tests.bench.scripted_endpoint import Reply, ScriptedEndpoint, serving


def configure(
    folder: Path, first: ScriptedEndpoint, second: ScriptedEndpoint, **changes: Any
) -> InterleaveConfig:
    values: dict[str, Any] = {
        "output": folder / "ab",
        "endpoint": first.config,
        "against": second.config,
        "arrival": "closed",
        "concurrency": 2,
        "requests": 5,
        "warmup": 0,
        "blocks": 6,
        "error_share": 1e6,
        "workload": {"prompt_tokens": {"mean": 4}},
    }
    return load_config(InterleaveConfig, values=values | changes)


def blocks_of(folder: Path, scale: float) -> list[Block]:
    """Twenty blocks on a machine whose speed drifts by as much as the change that is looked for."""
    rng, blocks = np.random.default_rng(3), list[Block]()
    for number in range(20):
        drift = 0.1 * (1 + 0.3 * np.sin(number / 3))
        pair = [list(drift * each * rng.lognormal(0, 0.1, 30)) for each in (1.0, scale)]
        runs = [read_bench(write_run(folder / f"{number}-{place}", each)) for place, each in enumerate(pair)]
        blocks.append(Block("a", {"a": runs[0], "b": runs[1]}))
    return blocks


@pytest.mark.parametrize(("scale", "verdict"), [(1.0, "not distinguishable"), (0.9, "faster")])
def test_drift_that_meets_both_alike_hides_no_change_and_makes_none(
    tmp_path: Path, scale: float, verdict: str
) -> None:
    rows = compare_blocks(blocks_of(tmp_path, scale), margin=0.0, seed=0)
    median = next(row for row in rows if (row.measure, row.q) == ("e2e_response_s", 50.0))
    assert median.verdict == verdict
    assert median.interval.low < scale < median.interval.high


def test_each_endpoint_comes_first_in_half_of_the_blocks() -> None:
    order = order_of(20, seed=0)
    assert order.count("a") == 10
    assert order == order_of(20, seed=0) != order_of(20, seed=1)


def test_both_get_every_block_with_prompts_of_their_own(tmp_path: Path) -> None:
    with serving() as first, serving(lambda _: Reply(e2e_s=0.02)) as second:
        run(configure(tmp_path, first, second))
    document = json.loads((tmp_path / "ab/comparison.json").read_text(encoding="utf-8"))
    assert len(first.prompts) == len(second.prompts) == 30
    assert not set(first.prompts) & set(second.prompts)
    verdicts = {(row["measure"], row["percentile"]): row["verdict"] for row in document["rows"]}
    assert verdicts["e2e_response_s", 50.0] == "slower"


def test_a_dataset_has_no_prompts_of_its_own_for_each_block(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "x"}')
    with serving() as server, pytest.raises(ConfigError, match="blocks have prompts of their own"):
        configure(tmp_path, server, server, workload={"data": tmp_path / "d.jsonl"})


def test_two_processes_send_one_schedule_on_one_clock(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "output": tmp_path / "out",
        "arrival": "constant",
        "rate": 40.0,
        "requests": 20,
        "warmup": 2,
        "processes": 2,
        "error_share": 1e6,
        "workload": {"prompt_tokens": {"mean": 4}},
    }
    with serving() as server:
        run_bench(load_config(BenchConfig, values=values | {"endpoint": server.config}))
    folder = read_bench(tmp_path / "out")
    due_s = sorted(timing.intended_s or 0.0 for timing in folder.timings)

    assert folder.result.counts["completed"] == 20
    assert sorted(record.index for record in folder.records) == list(range(20))
    assert np.diff(due_s) == pytest.approx(1 / 40), "the shares fit into one another"
    assert folder.result.client["processes"] == 2
    assert folder.result.warmup == {"completed": 2}
    assert len(set(server.prompts)) == 22
