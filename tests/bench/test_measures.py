from typing import Any

import numpy as np
import pytest

from decant.timing import RequestTiming
from decant_bench.bench_config import SloConfig
from decant_bench.columns import RequestColumns
from decant_bench.measures import error_counts, goodput, measure, series_of, throughput
from decant_bench.records import Record
from decant_bench.steady import steady_window


def timing(number: int = 0, *, e2e_s: float | None = 0.1, **fields: Any) -> RequestTiming:
    known: dict[str, Any] = {
        "request_id": f"r{number}",
        "intended_s": float(number),
        "actual_s": number + 0.02,
        "ttft_s": None if e2e_s is None else e2e_s / 2,
        "e2e_s": e2e_s,
        "completion_tokens": None if e2e_s is None else 11,
        "error_kind": "timeout" if e2e_s is None else None,
    }
    return RequestTiming(**(known | fields))


def columns(*timings: RequestTiming) -> RequestColumns:
    return RequestColumns.of_timings(timings)


def test_response_latency_holds_the_delay_before_sending_and_service_latency_does_not() -> None:
    series = series_of(columns(*(timing(i) for i in range(3))))

    assert series["e2e_response_s"].values == pytest.approx([0.12] * 3)
    assert series["e2e_service_s"].values == pytest.approx([0.1] * 3)
    assert series["ttft_response_s"].values == pytest.approx([0.07] * 3)
    assert series["tpot_s"].values == pytest.approx([0.005] * 3)


def test_a_tail_is_withheld_until_the_sample_reaches_beyond_it() -> None:
    few, many = ([timing(i, e2e_s=0.1 + 0.001 * i) for i in range(n)] for n in (367, 368))
    before, after = (
        measure(series_of(columns(*each))["e2e_service_s"], seed=0).to_json() for each in (few, many)
    )

    assert before["p99"] == {"value": None, "low": None, "high": None, "needs": 368}
    assert after["p99"]["low"] <= after["p99"]["value"] <= after["p99"]["high"]
    assert before["p95"]["value"] is not None


def test_latencies_that_wander_together_get_a_wider_interval() -> None:
    # A slow wave over the run: neighbours are alike, so there are far fewer than 1000 independent values.
    places = np.arange(1000), np.random.default_rng(0).permutation(1000)
    wave, mixed = (
        [timing(i, e2e_s=1.0 + 0.5 * float(np.sin(place / 160))) for i, place in enumerate(each)]
        for each in places
    )
    widths = [
        found.high - found.low
        for each in (wave, mixed)
        if (found := measure(series_of(columns(*each))["e2e_service_s"], seed=0).percentiles[0].interval)
    ]
    assert widths[0] > 2 * widths[1]


def test_goodput_is_over_offered_requests_and_counts_from_when_they_were_due() -> None:
    slo = SloConfig(e2e_s=0.11)
    # The second is answered within 0.1 s of being sent, but it was sent 0.02 s late; the third failed.
    timings = [timing(0, actual_s=0.0), timing(1), timing(2, e2e_s=None), timing(3, actual_s=3.0)]

    found = goodput(columns(*timings), slo, span_s=4.0)

    assert found is not None
    assert (found["good"], found["offered"], found["share"], found["per_s"]) == (2, 4, 0.5, 0.5)
    assert found["interval"]["low"] < 0.5 < found["interval"]["high"]
    assert goodput(columns(*timings), SloConfig(), span_s=4.0) is None


@pytest.mark.parametrize(("tokens", "good"), [(1, 1), (None, 0)])
def test_an_objective_per_token_is_kept_by_a_single_token_and_not_by_silence(
    tokens: int | None, good: int
) -> None:
    found = goodput(columns(timing(completion_tokens=tokens)), SloConfig(tpot_s=1.0), span_s=1.0)
    assert found is not None
    assert found["good"] == good


def test_a_gap_is_a_token_only_where_that_is_known() -> None:
    chunks = (0.1, 0.2, 0.4)
    each = timing(chunk_times_s=chunks, completion_tokens=3)
    unknown = timing(1, chunk_times_s=chunks, completion_tokens=7)
    told = timing(2, chunk_times_s=chunks, completion_tokens=7, chunk_tokens=(1, 2, 4))
    series = series_of(columns(each, unknown, told))
    assert series["itl_s"].values == pytest.approx([0.1, 0.2, 0.05, 0.05])
    assert len(series["chunk_gap_s"].values) == 6


def test_errors_are_counted_by_kind_with_the_first_ones_words() -> None:
    kinds = ["timeout", "auth", "timeout", None]
    records = [
        Record(index=i, turn=0, timing=timing(i, error_kind=kind), error=f"words {i}" if kind else None)
        for i, kind in enumerate(kinds)
    ]
    assert error_counts(RequestColumns.of(records)) == {
        "timeout": {"n": 2, "example": "words 0"},
        "auth": {"n": 1, "example": "words 1"},
    }


def test_throughput_counts_what_came_out_from_the_first_send_to_the_last_answer() -> None:
    found = throughput(
        columns(timing(0, actual_s=0.0), timing(1, actual_s=1.0, e2e_s=3.0), timing(2, e2e_s=None))
    )

    assert found["span_s"] == pytest.approx(4.0)
    assert found["requests_per_s"] == pytest.approx(0.5)
    assert found["completion_tokens_per_s"] == pytest.approx(22 / 4)


def test_the_steady_window_leaves_out_a_slow_start_and_a_slow_end() -> None:
    rng = np.random.default_rng(0)
    latencies = 0.1 + 0.01 * rng.random(400)
    latencies[:40] += np.linspace(1.0, 0.0, 40)
    latencies[-20:] += 0.5

    window = steady_window(latencies)

    assert window.found
    assert 25 <= window.first <= 60
    assert 370 <= window.last <= 385


def test_a_latency_that_only_grows_has_no_steady_window() -> None:
    window = steady_window(np.linspace(0.0, 40.0, 400))
    assert (window.found, window.first, window.last) == (False, 0, 400)
    assert "does not settle" in window.reason


def test_a_short_run_has_no_steady_window() -> None:
    assert "too few" in steady_window(np.full(59, 0.1)).reason
