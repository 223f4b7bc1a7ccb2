"""The import table of ARCHITECTURE.md, held by machine."""

import ast
import subprocess
import sys
from pathlib import Path

BASE_LIBRARIES = {
    *("decant", "httptools", "httpx", "jinja2", "jsonschema", "numpy", "pydantic", "pydantic_core"),
    *("referencing", "rich", "sqlalchemy"),
}


def test_the_import_contract_is_kept(repository: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as run; run()",
        "--no-cache",
    ]
    outcome = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False, timeout=60)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_the_core_imports_nothing_but_the_light_libraries(repository: Path) -> None:
    allowed = BASE_LIBRARIES | set(sys.stdlib_module_names)
    strangers = {
        f"{path.relative_to(repository)}: {library}"
        for path in (repository / "decant").rglob("*.py")
        for library in _libraries(path)
        if library not in allowed
    }
    assert not strangers


def _libraries(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found
