"""What is kept in the repository belongs in it."""

import re
import subprocess
from pathlib import Path

import pytest

# A path of one machine: somebody's home or work folder. Written in two halves, so as not to find itself.
MACHINE_PATH = re.compile(r"(?<![\w.-])/(?:ro" r"ot|ho" r"me|wo" r"rk|Us" r"ers)/[\w.-]+")
MAX_BYTES = 9_000_000


@pytest.fixture(scope="module")
def kept(repository: Path) -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(
            command, cwd=repository, capture_output=True, text=True, check=True, timeout=30
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := repository / name).is_file()]


def test_no_file_holds_a_path_of_one_machine(kept: list[Path], repository: Path) -> None:
    found: list[str] = []
    for path in kept:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(repository)}: {match[0]}" for match in MACHINE_PATH.finditer(text)]
    assert not found


def test_no_file_is_too_big_to_clone(kept: list[Path], repository: Path) -> None:
    assert not [str(path.relative_to(repository)) for path in kept if path.stat().st_size > MAX_BYTES]
