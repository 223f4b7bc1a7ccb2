"""`decant waterfall`: one request's time as text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from decant_serve.waterfall import waterfall

RANKS = [
    {"rank": 0, "compute_s": 0.04, "wait_s": 0.05, "comm_s": 0.01, "held_up_s": 0.0},
    {"rank": 1, "compute_s": 0.09, "wait_s": 0.0, "comm_s": 0.01, "held_up_s": 0.05},
]
RECORD: dict[str, Any] = {
    "request_id": "slow-one",
    "model": "m",
    "engine_name": "vllm",
    "status": 200,
    "finish_reason": "stop",
    "prompt_tokens": 7,
    "completion_tokens": 8,
    "shards": {
        "method": "clock",
        "steps": 8,
        "prefill_steps": 1,
        "cost_s": 0.1,
        "prefill": [],
        "decode": RANKS,
        "slowest_step": {"step": 42, "ranks": RANKS},
        "latency": {
            "gateway_s": 0.01,
            "frontend_s": 0.02,
            "engine_queue_s": None,
            "prefill_s": 0.0,
            "decode_s": 0.1,
            "others_s": 0.0,
            "gaps_s": 0.02,
            "output_s": 0.01,
            "residual_s": -1e-9,
            "total_s": 0.16,
        },
    },
}


def test_the_straggler_is_named_and_every_stage_drawn_where_it_begins() -> None:
    lines = waterfall(RECORD)
    assert lines[0] == "slow-one: 160.00 ms; m (vllm), 7 tokens in and 8 out, stop"
    decode = next(line for line in lines if line.startswith("  decode  "))
    assert decode.index("█") - len(f"  {'decode':<14} {'100.00':>10} ms  ") == int(44 * 0.03 / 0.16)
    assert "unexplained          0.00 ms" in "\n".join(lines)
    assert lines[-1] == "  rank 1 is the straggler: 50.00 of 50.00 ms of waiting are due to it"
    bars = [line for line in lines if line.startswith("    rank 0")]
    assert (bars[0].count("█"), bars[0].count("░"), bars[0].count("▒")) == (18, 22, 4)


def test_any_engines_request_can_be_shown(
    serve: Callable[..., Any],
    write_script: Callable[..., Path],
    run_decant: Callable[..., Any],
    tmp_path: Path,
) -> None:
    log = tmp_path / "timing.jsonl"
    with serve(write_script({"chunks": ["a", "b"], "ttft_s": 0.05}), "--timing-log", log) as server:
        request_id = server.chat("hi", stream=True).headers["x-request-id"]
        shown = run_decant("waterfall", request_id, "--base-url", server.base_url)
        missing = run_decant("waterfall", "no-such", "--base-url", server.base_url)
    assert "  prefill" in shown.stdout
    assert run_decant("waterfall", request_id, "--log", log).stdout == shown.stdout
    assert (missing.returncode, "answered 404" in missing.stderr) == (2, True)
    gone = run_decant("waterfall", request_id, "--base-url", server.base_url)
    assert (gone.returncode, "no answer that can be read" in gone.stderr) == (2, True)


@pytest.mark.parametrize(
    ("text", "complaint"), [("{\n", "1: not a timing record"), ("", "has no request"), (None, "cannot read")]
)
def test_a_log_without_the_request_is_one_clear_line(
    text: str | None, complaint: str, tmp_path: Path, run_decant: Callable[..., Any]
) -> None:
    log = tmp_path / "timing.jsonl"
    if text is not None:
        log.write_text(text)
    done = run_decant("waterfall", "x", "--log", log)
    assert done.returncode == 2
    assert complaint in done.stderr
