import io
import os
import pty
import subprocess
import sys

import pytest

from decant.progress import Progress


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_without_a_terminal_it_says_a_line_at_start_and_end(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(3, unit="rows", label="label", stream=out, clock=clock) as progress:
        for _ in range(3):
            clock.now_s += 0.5
            progress.advance(cost="$0.01")
    assert out.getvalue() == "label: 0/3 rows\nlabel: 3/3 rows, done in 0:02, 2 rows/s, cost $0.01\n"


def test_without_a_terminal_it_says_at_most_one_line_a_minute(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(1000, unit="rows", label="label", stream=out, clock=clock) as progress:
        for _ in range(150):
            clock.now_s += 1
            progress.advance()
    lines = out.getvalue().splitlines()
    assert lines[1:3] == [
        "label: 60/1000 rows, 1 rows/s, 15:40 left",
        "label: 120/1000 rows, 1 rows/s, 14:40 left",
    ]
    assert len(lines) == 4


def test_what_was_done_before_does_not_count_in_the_rate(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(100, unit="rows", label="label", start=90, stream=out, clock=clock) as progress:
        clock.now_s += 10
        progress.advance(5, loss=1.23456, tokens_per_s=12345.6)
    assert out.getvalue().splitlines() == [
        "label: 90/100 rows",
        "label: 95/100 rows, done in 0:10, 0.5 rows/s, loss 1.23, tokens per s 12346",
    ]


def test_a_stage_that_fails_says_where_it_stopped(clock: Clock) -> None:
    out = io.StringIO()

    def stage() -> None:
        with Progress(9, unit="rows", label="label", stream=out, clock=clock) as progress:
            clock.now_s += 2
            progress.advance(4)
            raise KeyError

    with pytest.raises(KeyError):
        stage()
    assert out.getvalue().endswith("label: 4/9 rows, stopped in 0:02, 2 rows/s\n")


def test_on_a_terminal_it_draws_a_bar_with_rate_and_cost(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    with Progress(4, unit="[rows]", label="label", stream=out, clock=clock) as progress:
        clock.now_s += 1
        progress.advance(4, cost="$0.25")
    assert "4/4 [rows], done in 0:01, 4 [rows]/s, cost $0.25" in out.getvalue()


def test_it_writes_to_stderr_and_leaves_stdout_alone() -> None:
    code = (
        "from decant.progress import Progress\nwith Progress(1, unit='rows', label='label') as p: p.advance()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "100"}
    ours, theirs = pty.openpty()
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=theirs, check=True
    )
    os.close(theirs)
    assert result.stdout == b""
    assert b"1/1" in os.read(ours, 65536)
    os.close(ours)
