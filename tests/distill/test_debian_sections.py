"""The rows that `distill/recipes/debian_sections.py` makes of a Debian package index."""

import runpy
from pathlib import Path
from typing import Any

import pytest

INDEX = """\
Package: chess
Description: play chess
Section: contrib/games

Package: chess-data
Description: play chess
 a second line is not the synopsis: of that
Section: games

Package: chess-doc
Description: chess documentation
Section: games

Package: libchess
Description: library that knows the rules
Section: libs

Package: curl
Description: fetch a URL
Section: net

Package: curl-web
Description: Fetch a URL
Section: web

Package: nothing
Section: games
"""


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(
        str(Path(__file__).parents[2] / "distill/recipes/debian_sections.py"), run_name="script"
    )


def test_a_synopsis_is_kept_once_and_only_where_one_section_claims_it(script: dict[str, Any]) -> None:
    rows = script["unambiguous"](script["packages"](INDEX.splitlines()))
    assert rows == [{"id": "chess", "text": "play chess", "label": "games"}]


def test_the_split_follows_from_the_text_alone(script: dict[str, Any]) -> None:
    splits = [script["split_of"](f"synopsis {number}") for number in range(2000)]
    assert script["split_of"]("Play Chess") == script["split_of"]("play chess")
    assert 0.09 < splits.count("test") / 2000 < 0.15
    assert 0.04 < splits.count("dev") / 2000 < 0.08
