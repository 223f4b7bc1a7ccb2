"""Starting is quick, because heavy libraries wait until they are needed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from decant.cli import VERBS

HEAVY = (
    "accelerate",
    "bitsandbytes",
    "gguf",
    "peft",
    "sklearn",
    "tokenizers",
    "torch",
    "transformers",
    "xllamacpp",
)


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


def test_help_takes_under_0_3_s() -> None:
    code = "from decant.cli import main; main(['--help'])"

    def duration_s() -> float:
        start = time.monotonic()
        assert "usage: decant" in _run(code).stdout
        return time.monotonic() - start

    # The best of several, so that a busy machine does not decide.
    assert min(duration_s() for _ in range(7)) < 0.3


@pytest.mark.parametrize("verb", VERBS)
def test_importing_a_verb_imports_no_heavy_library(verb: str) -> None:
    code = "import sys; from decant.cli import load_verb; load_verb(sys.argv[1]); print(*sys.modules)"
    loaded = set(_run(code, verb).stdout.split())
    assert not loaded & set(HEAVY)


def test_serving_imports_no_database_before_it_is_asked_for_one() -> None:
    code = "import sys; from decant.cli import load_verb; load_verb('serve'); print(*sys.modules)"
    assert "sqlalchemy" not in _run(code).stdout.split()


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_explains_itself(verb: str, repository: Path) -> None:
    outcome = _run("import sys; from decant.cli import main; main(sys.argv[1:])", verb, "--help")
    assert outcome.stdout.startswith(f"usage: decant {verb}")
    assert VERBS[verb][1] in " ".join(outcome.stdout.split())
