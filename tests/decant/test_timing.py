import json
import random

import numpy as np
import pytest

from decant.timing import RankTiming, RequestTiming, percentile, summarize


def timing(**fields: object) -> RequestTiming:
    known: dict[str, object] = {"request_id": "r", "actual_s": 10.0}
    return RequestTiming.from_dict(known | fields)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
@pytest.mark.parametrize("q", [0, 1, 50, 95, 99, 100])
def test_percentile_is_numpys_linear_interpolation(n: int, q: float) -> None:
    values = [random.Random(n).expovariate(1) for _ in range(n)]
    assert percentile(values, q) == pytest.approx(float(np.percentile(values, q)), rel=1e-12)


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0, float("nan")], 50), ([1.0], 101), ([1.0], 0.95)])
def test_percentile_refuses_nothing_nan_and_fractions(values: list[float], q: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, q)


def test_summary_of_known_values() -> None:
    assert summarize([4, 1, 3, 2]) == {
        "p50": 2.5,
        "p95": pytest.approx(3.85),
        "p99": pytest.approx(3.97),
        "mean": 2.5,
        "n": 4,
    }


def test_summary_of_nothing_has_no_numbers() -> None:
    assert summarize([]) == {"p50": None, "p95": None, "p99": None, "mean": None, "n": 0}


def test_response_latency_holds_the_delay_before_sending() -> None:
    late = timing(intended_s=9.5, ttft_s=0.2, e2e_s=1.0)
    assert (late.service_s, late.response_s, late.response_ttft_s) == (1.0, 1.5, 0.7)


def test_without_a_schedule_response_is_service() -> None:
    assert timing(e2e_s=1.0).response_s == 1.0


def test_tpot_never_includes_the_first_token() -> None:
    assert timing(ttft_s=0.5, e2e_s=1.5, completion_tokens=11).tpot_s == pytest.approx(0.1)


@pytest.mark.parametrize("missing", ["ttft_s", "e2e_s", "completion_tokens"])
def test_tpot_of_an_unfinished_or_unstreamed_answer_is_unknown(missing: str) -> None:
    assert timing(**({"ttft_s": 0.5, "e2e_s": 1.5, "completion_tokens": 11} | {missing: None})).tpot_s is None


def test_itl_divides_each_gap_by_the_tokens_that_came() -> None:
    chunked = timing(chunk_times_s=(0.1, 0.3, 0.4), chunk_tokens=(1, 2, 1))
    assert chunked.itl_s == (pytest.approx(0.1), pytest.approx(0.1))
    assert timing(chunk_times_s=(0.1, 0.3)).itl_s == ()


def test_a_timing_survives_json_and_ignores_what_it_does_not_know() -> None:
    whole = timing(intended_s=9.0, e2e_s=1.0, chunk_times_s=(0.5, 1.0), status=200, finish_reason="stop")
    record = json.loads(json.dumps(whole.to_dict())) | {"stage": "student"}
    assert RequestTiming.from_dict(record) == whole


def test_a_rank_spends_its_forward_in_three_places() -> None:
    assert RankTiming(rank=0, compute_s=1.0, wait_s=0.5, comm_s=0.25).forward_s == 1.75
