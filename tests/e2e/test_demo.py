"""The whole loop, small: every stage of the bundled recipe through its own command, files and HTTP."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("xllamacpp")

SMALL = [
    "world.train_count=16",
    "world.test_count=76",
    "load.requests=12",
    "world.max_length=3",
    "train.token_budget=3000",
    "load.rate=50.0",
]


def decant(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "decant", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which the demo has run once, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    changes = [argument for change in SMALL for argument in ("--set", change)]
    return folder, decant("demo", *changes, cwd=folder)


@pytest.fixture(scope="module")
def ledger(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    return json.loads((demo[0] / "runs/demo/ledger/ledger.json").read_text())


@pytest.mark.timeout(300)
def test_the_loop_runs_to_its_ledger(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = demo
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Your own teacher and data: change three lines" in done.stdout
    assert (folder / "runs/demo/ledger/ledger.html").stat().st_size > 10_000


def test_every_stage_answered_the_same_requests_and_kept_its_golden_prompts(ledger: dict[str, Any]) -> None:
    rows = {row["stage"]: row for row in ledger["rows"]}
    assert list(rows) == ["teacher", "student-labels", "student", "merged", "quantized"]
    assert {row["requests"]["n"] for row in rows.values()} == {12}
    assert all(row["requests"]["failed"] == 0 for row in rows.values())
    assert all(row["golden"]["checked"] > 0 and not row["golden"]["kinds"] for row in rows.values())
    assert rows["quantized"]["size_bytes"] < rows["merged"]["size_bytes"] < rows["teacher"]["size_bytes"]


def test_a_second_run_does_nothing_again(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    changes = [argument for change in SMALL for argument in ("--set", change)]
    again = decant("demo", *changes, cwd=demo[0])
    assert again.returncode == 0
    assert again.stdout.count("done before, skipped") == 15
