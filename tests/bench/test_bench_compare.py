import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decant.config import load_config
from decant.errors import DataError
from decant.stats import Interval
from decant_bench.bench_result import read_bench
from decant_bench.compare import CompareConfig, RatioRow, compare, run, verdict_of
from decant_bench.self_check import InvalidRun
from tests.bench.bench_runs import write_run


def latencies(seed: int, *, n: int = 400, scale: float = 0.1) -> list[float | None]:
    return list(scale * np.random.default_rng(seed).lognormal(0.0, 0.3, n))


def rows_of(folder: Path, before: list[Any], after: list[Any], *, margin: float = 0.0) -> list[RatioRow]:
    pair = [read_bench(write_run(folder / name, each)) for name, each in (("a", before), ("b", after))]
    return compare(pair[0], pair[1], margin=margin, seed=0)


def configure(folder: Path, **changes: Any) -> CompareConfig:
    return load_config(CompareConfig, values={"before": folder / "a", "after": folder / "b", **changes})


def test_two_runs_of_the_same_server_are_not_distinguishable(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, latencies(1), latencies(2))

    assert {row.verdict for row in rows} == {"not distinguishable"}
    assert {(row.measure, row.q) for row in rows} >= {("e2e_response_s", 50.0), ("ttft_response_s", 99.0)}


def test_the_same_run_against_itself_has_a_ratio_of_one(tmp_path: Path) -> None:
    assert {row.ratio for row in rows_of(tmp_path, latencies(1), latencies(1))} == {1.0}


@pytest.mark.parametrize(("scale", "verdict"), [(0.07, "faster"), (0.14, "slower")])
def test_a_real_change_is_found_with_its_size(tmp_path: Path, scale: float, verdict: str) -> None:
    rows = rows_of(tmp_path, latencies(1), latencies(2, scale=scale))
    median = next(row for row in rows if (row.measure, row.q) == ("e2e_response_s", 50.0))

    assert median.verdict == verdict
    assert median.interval.low < scale / 0.1 < median.interval.high


def test_few_verdicts_are_wrong_when_nothing_changed(tmp_path: Path) -> None:
    # All rows hold together at 95 %: of 15 pairs alike, few may show any difference.
    wrong = 0
    for seed in range(15):
        pair = latencies(100 + seed, n=80), latencies(200 + seed, n=80)
        rows = rows_of(tmp_path, *pair)
        wrong += any(row.verdict != "not distinguishable" for row in rows)
    assert wrong <= 3


def test_a_change_within_the_margin_is_no_verdict() -> None:
    small = Interval(0.95, 0.98)
    assert verdict_of(small, margin=0.0) == "faster"
    assert verdict_of(small, margin=0.05) == "not distinguishable"
    assert verdict_of(Interval(1.06, 1.2), margin=0.05) == "slower"


def test_a_percentile_that_one_run_cannot_bound_is_not_compared(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, latencies(1, n=400), latencies(2, n=100))
    assert {row.q for row in rows} == {50.0, 95.0}
    with pytest.raises(DataError, match="a median needs 6 completed requests"):
        rows_of(tmp_path, latencies(1, n=400), latencies(2, n=5))


def test_what_else_differs_is_said_before_the_verdicts(tmp_path: Path, capsys: Any) -> None:
    write_run(tmp_path / "a", latencies(1))
    write_run(tmp_path / "b", [*latencies(2), None], hardware={"cpu": "two", "cores": 2, "gpus": []}, seed=4)
    run(configure(tmp_path, output=tmp_path / "c.json"))
    shown = capsys.readouterr().out

    for words in ("cpu was one and is two", "another workload or seed", "after: 1 of 401 requests failed"):
        assert words in shown
    document = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert {row["verdict"] for row in document["rows"]} == {"not distinguishable"}
    assert len(document["notes"]) == 4  # the number of requests differs too


def test_a_run_that_is_not_valid_gives_no_verdict_to_rely_on(tmp_path: Path) -> None:
    write_run(tmp_path / "a", latencies(1))
    write_run(tmp_path / "b", latencies(2), valid=False, doubts=("the loop lagged",))
    with pytest.raises(InvalidRun, match="cannot be relied on") as caught:
        run(configure(tmp_path))
    assert caught.value.exit_code == 3


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing: holds no benchmark run"):
        read_bench(tmp_path / "nothing")
