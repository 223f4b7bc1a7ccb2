import sys

import pytest

from decant.hardware import describe_command


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("/opt/bin/decant", "decant bench --rate 2"),
        ("/src/decant/__main__.py", "decant bench --rate 2"),
        ("/src/benchmarks/peers/__main__.py", "python -m peers bench --rate 2"),
        ("benchmarks/long_run.py", "python long_run.py bench --rate 2"),
    ],
)
def test_a_command_is_shown_as_it_is_typed_without_its_folders(
    monkeypatch: pytest.MonkeyPatch, program: str, shown: str
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "bench", "--rate", "2"])
    assert describe_command() == shown
