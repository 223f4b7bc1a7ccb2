"""What a bad endpoint or trace gets from the command line: its kind or its line, and an end in time."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from decant.cli import main
from tests.bench.scripted_endpoint import Reply, serving


def bench(folder: Path, endpoint: dict[str, Any], **changes: Any) -> int:
    values: dict[str, Any] = {
        "output": str(folder / "out"),
        "endpoint": endpoint,
        "arrival": "constant",
        "rate": 50.0,
        "requests": 6,
        "warmup": 0,
        "drain_s": 4.0,
        "error_share": 1e6,
        "workload": {"prompt_tokens": {"mean": 4}},
    }
    (folder / "bench.json").write_text(json.dumps(values | changes), encoding="utf-8")
    return main(["bench", "run", "--config", str(folder / "bench.json")])


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Reply(status=401), "auth"),
        (Reply(status=429), "rate_limited"),
        (Reply(fault="garbage"), "bad_response"),
        (Reply(fault="stall"), "unfinished"),
        (Reply(fault="cut"), "stream_broken"),
    ],
)
def test_every_failure_is_counted_by_kind_and_shown_and_the_run_ends_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Reply, kind: str
) -> None:
    began_s, asked = time.monotonic(), iter(range(100))
    with serving(lambda _: fault if next(asked) % 2 else Reply()) as server:
        code = bench(tmp_path, server.config)
    result = json.loads((tmp_path / "out/result.json").read_text(encoding="utf-8"))

    assert code == 0
    assert (result["counts"]["offered"], result["counts"]["completed"]) == (6, 3)
    assert {name: found["n"] for name, found in result["errors"].items()} == {kind: 3}
    assert f"failed, {kind}: 3" in capsys.readouterr().out
    assert time.monotonic() - began_s < 30, "the server would stall for ever"


@pytest.mark.parametrize(
    ("fault", "words"),
    [(Reply(status=401), "auth 6"), (Reply(fault="stall"), "unfinished 6"), (Reply(fault="cut"), "broken 6")],
)
def test_when_nothing_completes_there_is_one_line_and_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Reply, words: str
) -> None:
    with serving(lambda _: fault) as server:
        assert bench(tmp_path, server.config) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert "none of 6 requests completed" in last
    assert words in last
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("m.jsonl", '{"timestamp": 0, "input_length": 2, "output_length": 2}\n{"timestamp": 1}\n', ":2: "),
        ("b.csv", "Timestamp,Request tokens,Response tokens\n0,2,2\n1,two,2\n", ":3: "),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnever,2,2\n", ":2: "),
    ],
)
def test_a_wrong_trace_line_is_named_by_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, where: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with serving() as server:
        changes = {"arrival": "trace", "trace": str(tmp_path / name), "rate": None}
        assert bench(tmp_path, server.config, **changes) == 2
    assert f"{name}{where}" in capsys.readouterr().err
