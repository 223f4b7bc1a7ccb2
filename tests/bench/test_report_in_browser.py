"""A run's report.html in a real Chromium: it loads alone, and every plot has its marks."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from decant_bench.bench_html import bench_page
from tests.bench.test_bench_page import columns, result

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright, which drives the browser, is missing"
)
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}"),
]
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
PART = {"p50": 0.012, "p95": 0.02, "n": 9}
RANK = {"n": 9, "compute_s": 0.02, "wait_s": 0.01, "comm_s": 0.005}
SERVER = {
    "joined": 9,
    "missing": 0,
    "ttft_parts": {"network_s": PART, "engine_s": PART},
    "ranks": [{"rank": 0, **RANK}, {"rank": 1, **RANK}],
}


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """The report of a run with failures and a joined server, as a file."""
    report = tmp_path / "report.html"
    report.write_text(bench_page(result(server=SERVER), columns()), encoding="utf-8")
    wrong: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: wrong.append(asked.url) if "report.html" not in asked.url else None)
        page.goto(report.as_uri())
        yield page
        browser.close()
    assert wrong == [], "nothing fails in it, and it asks for nothing else"


def test_every_plot_of_the_report_has_marks_that_can_be_seen(page: Any) -> None:
    plots = page.locator("figure > svg")
    assert plots.count() == 6
    for plot in plots.all():
        sizes = [mark.bounding_box() for mark in plot.locator(".dot, .curve, .bar").all()[:40]]
        seen = [size for size in sizes if size is not None and size["width"] + size["height"] > 1]
        assert seen, plot.get_attribute("aria-label")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out"
    page.set_viewport_size({"width": 420, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nor on a telephone"
