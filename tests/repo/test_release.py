"""What is published agrees with itself: version, changelog, extras, constraints, packages."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import decant


@pytest.fixture(scope="module")
def pyproject(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found, requirement
    return found[0].lower().replace("_", "-")


def test_the_version_is_the_top_entry_of_the_changelog(repository: Path) -> None:
    top = re.search(r"^## \[(.+?)\]", (repository / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert top
    assert top[1] == decant.__version__


def test_every_requirement_of_the_demo_and_the_tests_is_pinned(
    repository: Path, pyproject: dict[str, Any]
) -> None:
    lines = (repository / "constraints-cpu.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_name(line) for line in lines if re.fullmatch(r"[\w.-]+==[\w.]+", line)}
    extras = pyproject["project"]["optional-dependencies"]
    heavy = [requirement for name, wants in extras.items() if name != "vllm" for requirement in wants]
    asked = {_name(requirement) for requirement in [*pyproject["project"]["dependencies"], *heavy]}
    assert asked - pinned == {"decant"}


def test_every_extra_named_in_an_error_exists(repository: Path, pyproject: dict[str, Any]) -> None:
    extras = set(pyproject["project"]["optional-dependencies"])
    sources = [path for package in _packages(pyproject) for path in (repository / package).rglob("*.py")]
    calls = [
        (path.name, name)
        for path in sources
        for name in re.findall(
            r'MissingExtraError\(\s*"[^"]+",\s*(?:extra=)?"([^"]+)"', path.read_text(encoding="utf-8")
        )
    ]
    assert calls
    assert not [call for call in calls if call[1] not in extras]


def test_every_package_is_built_linted_and_importable(repository: Path, pyproject: dict[str, Any]) -> None:
    inits = repository.glob("*/decant_*/__init__.py")
    found = {"decant", *(str(path.parent.relative_to(repository)) for path in inits)}
    names = {Path(package).name for package in found}
    assert set(_packages(pyproject)) == found
    assert set(pyproject["tool"]["importlinter"]["root_packages"]) == names
    folders = {str(Path(package).parent) for package in found}
    assert folders == set(pyproject["tool"]["hatch"]["build"]["dev-mode-dirs"])


def _packages(pyproject: dict[str, Any]) -> list[str]:
    return pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
