"""Functions up to 40 lines, files up to 400: what is longer is named here, and says why where it stands."""

import ast
from collections.abc import Iterator
from pathlib import Path

AREAS = ("decant", "serve", "quant", "distill", "benchmarks", "tests")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
LONGER_FILES: frozenset[str] = frozenset()
LONGER_FUNCTIONS: frozenset[str] = frozenset()


def _sources(repository: Path) -> Iterator[tuple[str, str]]:
    for area in AREAS:
        for path in sorted((repository / area).rglob("*.py")):
            yield path.relative_to(repository).as_posix(), path.read_text(encoding="utf-8")


def test_files_are_short(repository: Path) -> None:
    longer = {name for name, text in _sources(repository) if text.count("\n") > MAX_FILE_LINES}
    assert longer == LONGER_FILES


def test_functions_are_short(repository: Path) -> None:
    longer = {
        f"{name}::{node.name}"
        for name, text in _sources(repository)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _lines(node) > MAX_FUNCTION_LINES
    }
    assert longer == LONGER_FUNCTIONS


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to the last line, its docstring aside."""
    documented = ast.get_docstring(node) is not None
    docstring = node.body[0]
    about = (docstring.end_lineno or 0) - docstring.lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - about


def test_no_file_is_named_for_nothing_in_particular(repository: Path) -> None:
    vague = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not [name for name, _ in _sources(repository) if Path(name).name in vague]
