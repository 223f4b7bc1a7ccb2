import re
import xml.etree.ElementTree as ET
from typing import Any

from decant.timing import RequestTiming
from decant_bench.bench_html import bench_page
from decant_bench.bench_plots import flight_plot, parts_plot, ranks_plot, time_plot
from decant_bench.bench_text import percentile_text, result_text
from decant_bench.columns import RequestColumns
from decant_bench.measures import error_counts, latency_json, throughput
from decant_bench.records import Record
from decant_bench.server_timing import ServerRecord, rank_parts
from overload import standalone
from tests.bench.bench_runs import run_result


def records(n: int = 90, *, failed: int = 2) -> list[Record]:
    return [
        Record(
            index=number,
            turn=0,
            error="refused <here>" if number < failed else None,
            timing=RequestTiming(
                request_id=f"r{number}",
                intended_s=0.1 * number,
                actual_s=0.1 * number + 0.01,
                ttft_s=None if number < failed else 0.05,
                e2e_s=None if number < failed else 0.1 + 0.001 * number,
                completion_tokens=5,
                error_kind="auth" if number < failed else None,
            ),
        )
        for number in range(n)
    ]


def columns(n: int = 90) -> RequestColumns:
    return RequestColumns.of(records(n))


def result(**changes: Any) -> Any:
    shown = columns()
    latency = latency_json(shown, seed=0)
    steady = {"found": False, "reason": "too short", "from_s": 0.0, "to_s": 1.0, "n": 9, "latency": latency}
    base = run_result("night <load>", n=90, failed=2)
    known: dict[str, Any] = {
        "endpoint": {"model": "m", "engine": "scripted"},
        "load": {**base.load, "source": None},
        "latency": latency,
        "throughput": throughput(shown),
        "errors": error_counts(shown),
        "steady": steady,
        "client": {
            "loop_lag_s": {"p99": 0.001},
            "schedule_error_s": {"p99": None},
            "cpu_share": 0.4,
            "stamps": "kernel",
        },
        "hardware": {"cpu": "one", "cores": 2, "memory_gib": 4, "gpus": []},
    }
    known["client"] |= {"stamps": "kernel"}
    return base.model_copy(update=known | changes)


def test_the_page_stands_alone_and_escapes_what_others_wrote() -> None:
    html = bench_page(result(), columns())

    assert "night &lt;load&gt;" in html
    assert "refused &lt;here&gt;" in html
    assert not re.search(r"<script|<link|https?://|NaN|None", html)
    assert html.count("<svg") >= 4


def test_the_page_says_first_whether_the_run_holds() -> None:
    assert "Valid: the client kept up" in bench_page(result(), columns())
    doubted = bench_page(result(valid=False, doubts=("the loop lagged",)), columns())
    assert "Not valid" in doubted
    assert "the loop lagged" in doubted


def test_the_text_shows_failures_percentiles_and_why_one_is_withheld() -> None:
    text = result_text(result(valid=False, doubts=("the loop lagged",)))

    assert "88 of 90 offered requests completed" in text
    assert "failed, auth: 2 (refused <here>)" in text
    assert "n < 368" in text
    assert "NOT VALID: the loop lagged" in text
    assert percentile_text({"value": 0.0123, "low": 0.0119, "high": 0.0128}) == "12.3 [11.9, 12.8]"


def test_plots_of_nothing_are_empty() -> None:
    none = RequestColumns.of([])
    assert time_plot(none, None) == flight_plot(none) == parts_plot(None) == ""


def test_the_flight_plot_names_its_peak() -> None:
    at_once = [RequestTiming(request_id="r", actual_s=0.1 * i, e2e_s=0.25) for i in range(5)]
    assert "at most 3 in flight" in flight_plot(RequestColumns.of_timings(at_once))


def test_the_flight_plot_of_a_long_run_stays_at_the_level_that_lasted() -> None:
    # Four clients that send again at once: each gap between an end and the next send is a blink.
    steady = [
        RequestTiming(request_id="r", actual_s=0.1 * client + 0.4 * turn, e2e_s=0.399)
        for turn in range(3000)
        for client in range(4)
    ]
    (drawn,) = re.findall(r' d="([^"]+)"', flight_plot(RequestColumns.of_timings(steady)))
    heights = [re.split("[ ,]", point)[1] for point in re.findall(r"[-\d.]+[ ,][-\d.]+", drawn)]
    top = min(heights, key=float)
    assert heights.count(top) / len(heights) > 0.95


def test_the_parts_of_the_first_token_are_bars_with_their_medians() -> None:
    found = {"p50": 0.012, "p95": 0.02, "n": 9}
    plot = parts_plot({"ttft_parts": {"network_s": found, "gateway_queue_s": found}})
    assert plot.count('class="bar"') == 2
    assert "gateway queue" in plot
    assert "12.0 ms" in plot


def test_each_rank_has_a_bar_of_its_compute_wait_and_communication() -> None:
    timing = records(3)[2].timing
    rows = [
        {"rank": rank, "compute_s": 0.02 + 0.01 * rank, "wait_s": 0.01 * (1 - rank), "comm_s": 0.005}
        for rank in (1, 0)
    ]
    ranks = rank_parts([ServerRecord(timing, {}, {"ranks": rows}), ServerRecord(timing, {}, {})])
    plot = ranks_plot({"ranks": ranks})

    assert [(row["rank"], row["n"], row["wait_s"]) for row in ranks] == [(0, 1, 0.01), (1, 1, 0.0)]
    assert plot.count("<rect") == 6
    assert "rank 0: wait 10.0 ms" in plot
    assert ranks_plot({"ranks": []}) == ""


def test_where_server_and_tokenizer_count_otherwise_it_is_said_in_both_views() -> None:
    recount = {"n": 88, "differ_share": 0.25, "difference_mean": 1.5}
    tokens = {**result().tokens, "recount": recount}
    said = "in 25.0% of 88 answers the tokenizer counts otherwise than the server, which counts +1.50"

    assert said in result_text(result(tokens=tokens, goodput=None))
    assert said in bench_page(result(tokens=tokens), columns())


def test_a_long_run_makes_no_longer_page_and_keeps_its_slowest_requests() -> None:
    many = [timing_at(0.01 * place, 9.0 if place == 4_321 else 0.1) for place in range(8_000)]
    plot = time_plot(RequestColumns.of_timings(many), None)
    pages = [len(bench_page(result(), RequestColumns.of_timings(many[:n]))) for n in (2_000, 8_000)]

    assert "9 s" in plot or "10 s" in plot
    assert plot.count('class="dot"') <= 2 * 1600
    assert pages[1] < 1.5 * pages[0], "four times the requests"


def test_a_plot_of_the_report_can_be_a_file_of_its_own() -> None:
    drawn = ET.fromstring(standalone(time_plot(columns(), None)))
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert drawn.findall(".//{*}circle")


def timing_at(at_s: float, e2e_s: float) -> RequestTiming:
    return RequestTiming(request_id="r", actual_s=at_s, ttft_s=0.05, e2e_s=e2e_s, completion_tokens=5)
