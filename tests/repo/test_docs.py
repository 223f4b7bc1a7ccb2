"""The documents name real things: commands that parse, files that exist, names that the code has."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.repo.claims import Claim, Sources, claims_of, complaint, links_of, toml_blocks_of

ROOT = Path(__file__).parents[2]
AREAS = ("serve", "quant", "distill", "benchmarks", "deploy")
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted(path for area in AREAS for path in (ROOT / area).rglob("README.md")),
]


@pytest.fixture(scope="module")
def sources() -> Sources:
    return Sources.read(ROOT)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_names_only_what_exists(document: Path, sources: Sources) -> None:
    found = [(claim, complaint(claim, document.parent, sources)) for claim in claims_of(document)]
    assert not [f"line {claim.line}: `{claim.text}` {why}" for claim, why in found if why]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_links_to_files_that_exist(document: Path) -> None:
    assert not [link for link in links_of(document) if not (document.parent / link).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_recipes_in_a_document_use_keys_that_the_code_has(document: Path, sources: Sources) -> None:
    keys = {key for block in toml_blocks_of(document) for key in _keys(tomllib.loads(block))}
    assert not [key for key in keys if key not in sources.words]


def test_a_document_that_names_something_unreal_is_caught(tmp_path: Path, sources: Sources) -> None:
    document = tmp_path / "README.md"
    document.write_text(
        "`decant sreve`, `decant serve --prot 1`, `make tea`,\n"
        "`decant/nothing.py`, `decant.golden.compere`, `no_such_name`\n"
        "```sh\n$ decant eval --seed 1 \\\n  --sede 2\n```\n",
        encoding="utf-8",
    )
    claims = claims_of(document)
    assert len(claims) == 7
    assert all(complaint(claim, tmp_path, sources) for claim in claims)


REAL = (
    "decant serve",
    "decant eval --seed 1",
    "make demo",
    "decant/golden.py",
    "decant.golden.compare",
    "ttft_s",
)


@pytest.mark.parametrize("text", REAL)
def test_what_is_real_is_let_through(text: str, tmp_path: Path, sources: Sources) -> None:
    assert complaint(Claim(line=1, text=text), tmp_path, sources) is None


def _keys(tree: dict[str, Any]) -> Iterator[str]:
    for key, value in tree.items():
        yield key
        for branch in value if isinstance(value, list) else [value]:
            if isinstance(branch, dict):
                yield from _keys(branch)
