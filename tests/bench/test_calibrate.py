import json
from pathlib import Path
from typing import Any

import pytest

from decant.config import load_config
from decant.endpoint import Endpoint
from decant.timing import RequestTiming
from decant_bench.calibrate import CalibrateConfig, ErrorRow, calibration_text, error_rows, run, script_of
from decant_bench.server_timing import ServerRecord, fetch_server_timing, server_json, split_ttft_s


def configure(folder: Path, **changes: Any) -> CalibrateConfig:
    return load_config(CalibrateConfig, values={"output": folder / "calibration", **changes})


def timing(*chunks_s: float, number: int = 0, **fields: Any) -> RequestTiming:
    return RequestTiming(
        request_id=f"r{number}",
        actual_s=0.0,
        ttft_s=chunks_s[0],
        e2e_s=chunks_s[-1],
        chunk_times_s=chunks_s,
        **fields,
    )


def test_the_error_is_what_was_measured_minus_what_was_scripted(tmp_path: Path) -> None:
    config = configure(tmp_path, through="gateway", ttft_s=0.2, gap_s=0.02, tokens=3)
    measured = [timing(0.201, 0.221, 0.241), timing(0.205, 0.224, 0.244, number=1)]
    server = {"r0": timing(0.2005, 0.2205, 0.2405)}

    rows = {(row.delay, row.of): row for row in error_rows(config, 2, measured, server)}

    assert rows["ttft", "script"].p50_s == pytest.approx(0.003)
    assert rows["ttft", "script"].worst_s == pytest.approx(0.005)
    assert rows["itl", "script"].n == 4
    assert rows["itl", "script"].worst_s == pytest.approx(0.001)
    assert (rows["ttft", "gateway"].n, rows["ttft", "gateway"].p50_s) == (1, pytest.approx(0.0005))
    assert rows["itl", "gateway"].worst_s == pytest.approx(0.0)


def test_the_script_says_what_the_table_is_compared_with(tmp_path: Path) -> None:
    config = configure(tmp_path, ttft_s=0.1, gap_s=0.01, tokens=4)
    [answer] = script_of(config)["answers"]
    assert (answer["ttft_s"], answer["gaps_s"], len(answer["chunks"])) == (0.1, [0.01], 4)
    text = calibration_text(config, [ErrorRow(64, "ttft", "script", 9, 0.0012, 0.003, 0.004)])
    assert text.splitlines()[2].split() == ["64", "ttft", "script", "9", "1.20", "3.00", "4.00"]


def test_a_calibration_measures_the_shipped_engine(tmp_path: Path) -> None:
    config = configure(
        tmp_path,
        through="gateway",
        streams=[1, 6],
        requests_per_stream=2,
        least_requests=4,
        ttft_s=0.08,
        gap_s=0.02,
        tokens=5,
        error_share=1e6,
    )
    run(config)
    document = json.loads((config.output / "calibration.json").read_text(encoding="utf-8"))
    rows = {(row["streams"], row["delay"], row["against"]): row for row in document["rows"]}

    assert [rows[streams, "ttft", "script"]["n"] for streams in (1, 6)] == [4, 12]
    for row in rows.values():
        # Late by what a busy machine adds, and never early by more than a timer's grain.
        assert -0.002 < row["p50_s"] < 0.1, row
    assert rows[6, "itl", "gateway"]["n"] == 48, "every request was joined with the gateway's own timing"
    result = json.loads((config.output / "streams-6/result.json").read_text(encoding="utf-8"))
    assert result["server"]["joined"] == 12
    parts = {"network_s", "gateway_queue_s", "prefill_s", "engine_wait_s"}
    assert set(result["server"]["ttft_parts"]) == parts


def test_the_parts_of_the_first_token_add_up_to_it() -> None:
    server = ServerRecord(timing(0.09, queue_s=0.03), {"prompt_ms": 40.0}, {})
    parts = split_ttft_s(timing(0.1), server)

    assert parts == {
        "network_s": pytest.approx(0.01),
        "gateway_queue_s": 0.03,
        "prefill_s": 0.04,
        "engine_wait_s": pytest.approx(0.02),
    }
    assert sum(parts.values()) == pytest.approx(0.1)


def test_what_could_not_be_joined_is_counted() -> None:
    server = {"r0": ServerRecord(timing(0.09, queue_s=0.03), {}, {})}
    found = server_json([timing(0.1), timing(0.1, number=1)], server)

    assert found is not None
    assert (found["joined"], found["missing"]) == (1, 1)
    assert server_json([timing(0.1)], {}) is None


async def test_another_servers_endpoint_is_not_asked_for_its_timing() -> None:
    assert await fetch_server_timing(Endpoint("http://127.0.0.1:9/v1", "m", None, {}, None), ["a"]) == {}


def test_without_a_gateway_the_engine_stamps_each_answer_itself(tmp_path: Path) -> None:
    sizes = {"streams": [2], "requests_per_stream": 2, "least_requests": 4, "tokens": 3}
    config = configure(tmp_path, ttft_s=0.05, gap_s=0.01, error_share=1e6, **sizes)
    run(config)
    document = json.loads((config.output / "calibration.json").read_text(encoding="utf-8"))
    rows = {(row["delay"], row["against"]): row for row in document["rows"]}

    compared = {(delay, against) for delay in ("ttft", "itl") for against in ("script", "engine")}
    assert set(rows) == {*compared, ("late", "engine")}
    assert rows["ttft", "script"]["p50_s"] > -1e-4, "nothing is measured before the engine sent it"
    assert (rows["ttft", "engine"]["n"], rows["itl", "engine"]["n"]) == (4, 8), "joined request by request"
    result = json.loads((config.output / "streams-2/result.json").read_text(encoding="utf-8"))
    assert result["client"]["stamps"] == "kernel"
