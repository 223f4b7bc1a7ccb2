import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.cells import cell_len

from decant.config import load_config
from decant_bench.ledger import run
from decant_bench.ledger_config import LedgerConfig
from decant_bench.svg import Scale, linear_ticks, log_ticks
from tests.bench.stages import Asked, write_stage

VOID = {"meta", "line", "circle", "polygon", "path"}


class Page(HTMLParser):
    """Checks that every element is closed in its turn, and collects what the page is made of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def build(folder: Path, student: str = "student", **asked: object) -> str:
    """Writes a ledger of two stages and returns its page."""
    rows = [Asked(f"r{i}", "7", "7" if i % 9 else "3", e2e_s=0.01 * (i + 1), length=i % 5) for i in range(45)]
    worse = [
        Asked(f"r{i}", "7", "7" if i % 3 else None, e2e_s=0.002 * (i + 1), length=i % 5) for i in range(45)
    ]
    capacity = {"saturation": {"requests_per_s": 4.0, "clients": 8}}
    stages = [
        {"name": "teacher", "eval": write_stage(folder / "teacher", rows, **capacity)},
        {
            "name": student,
            "eval": write_stage(folder / "s", worse, **capacity),
            "parent": "teacher",
            "allowance": 0.01,
        },
    ]
    values = {"stages": stages, "teacher": "teacher", "output": folder / "ledger", "price_per_hour": 1.0}
    run(load_config(LedgerConfig, values=values | asked))
    return (folder / "ledger" / "ledger.html").read_text(encoding="utf-8")


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    html = build(tmp_path)
    page = Page(html)

    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"(https?:)?//|url\(|@import", html)


def test_the_page_has_the_tables_and_every_plot(tmp_path: Path) -> None:
    page = Page(build(tmp_path))

    assert page.tags.count("table") == 2
    assert page.tags.count("figure") == 5
    for heading in ("What each stage changed", "Quality, latency, cost", "Accuracy by problem length"):
        assert heading in page.words


def test_what_people_name_things_cannot_break_the_page(tmp_path: Path) -> None:
    html = build(tmp_path, student='<b onload="x">&amp;')

    assert "<b " not in html
    assert Page(html).open == []


def test_marks_say_their_numbers_when_pointed_at(tmp_path: Path) -> None:
    build(tmp_path)
    html = (tmp_path / "ledger" / "ledger.html").read_text(encoding="utf-8")
    paired = json.loads((tmp_path / "ledger" / "ledger.json").read_text())["rows"][1]["difference"]["paired"]

    assert f"n {paired['n']}; may lose 1.0</title>" in html


def test_the_table_fits_120_columns_and_is_plain_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path)
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if "written to" not in line]

    assert "\x1b" not in printed
    assert max(cell_len(line) for line in table) <= 120
    for words in ("teacher", "student", "88.9%", "LOST", "McNemar", "first token, ms", "break-even"):
        assert words in printed


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-0.03, 0.01, [-0.03, -0.02, -0.01, 0, 0.01]), (5, 5, [5])],
)
def test_linear_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert linear_ticks(low, high) == pytest.approx(expected)


def test_log_ticks_are_one_two_five_and_powers_of_ten_over_many_decades() -> None:
    assert log_ticks(0.04, 0.3) == pytest.approx([0.05, 0.1, 0.2])
    assert log_ticks(0.001, 90) == pytest.approx([0.001, 0.01, 0.1, 1, 10])


@pytest.mark.parametrize("kind", ["linear", "log", "root"])
def test_a_scale_keeps_order_and_reaches_both_ends(kind: str) -> None:
    scale = load_scale(kind)
    places = [scale(value) for value in (0.1, 0.2, 0.5, 0.9)]

    assert places == sorted(places)
    assert (scale(0.1), scale(0.9), scale(7.0)) == (pytest.approx(50), pytest.approx(250), pytest.approx(250))


def load_scale(kind: str) -> Scale:
    return {
        "linear": Scale(0.1, 0.9, 50, 250),
        "log": Scale(0.1, 0.9, 50, 250, "log"),
        "root": Scale(0.1, 0.9, 50, 250, "root"),
    }[kind]
