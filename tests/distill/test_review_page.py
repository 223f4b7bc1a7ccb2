"""The review page in a real browser: read, filter, decide with the keyboard."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from decant.reviews import read_reviews
from decant.store import RequestStore
from tests.distill.test_curate import label, votes
from tests.distill.test_review import labels, reviewing

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright, which drives the browser, is missing"
)
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}")
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    rows = [*labels(), *(label(f"p{number}", 0, f"a{number}") for number in range(150))]
    with reviewing(tmp_path, rows) as url:
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(url)
        page.locator("main .answer pre").wait_for()
        yield page
        page.close()
        assert wrong == []


def current(page: Any) -> str:
    return page.locator("#list [aria-current=true]").get_attribute("data-line")


def test_a_label_is_read_accepted_and_the_next_one_comes(page: Any, tmp_path: Path) -> None:
    assert page.locator("main .prompt pre").inner_text() == "2+2"
    assert "thought 0" in page.locator("main").inner_text()
    page.keyboard.press("a")
    page.locator("#list [data-line='2'][aria-current=true]").wait_for()
    assert page.locator("#list li").first.get_attribute("class") == "accepted"
    page.locator("#progress", has_text="1 of 156 decided").wait_for()
    page.keyboard.press("r")
    page.locator("#list [data-line='3'][aria-current=true]").wait_for()
    with RequestStore.open(tmp_path / "labels.store.sqlite") as requests:
        versions = read_reviews(requests, ["2+2-0", "2+2-1"])
    assert [version[0].decision for version in versions.values()] == ["accept", "reject"]


def test_an_edit_is_saved_shown_and_taken_back_with_the_keyboard(page: Any) -> None:
    page.keyboard.press("e")
    page.locator("#edit-answer").fill("four")
    page.keyboard.press("Control+Enter")
    page.locator("#list li.edited", has_text="four").wait_for()
    page.locator("#list [data-line='2'][aria-current=true]").wait_for()
    page.keyboard.press("k")
    page.locator("main .answer pre", has_text="four").wait_for()
    assert page.locator("main .answer .old").inner_text() == "4"
    page.keyboard.press("u")
    page.locator("main .chip.unreviewed").wait_for()
    assert page.locator("main .answer pre").inner_text() == "4"


def test_keys_that_are_typed_into_a_field_decide_nothing(page: Any) -> None:
    page.keyboard.press("/")
    page.keyboard.type("are")
    page.locator("#total", has_text="0 labels").wait_for()
    page.keyboard.press("Escape")
    page.locator("#clear").click()
    page.locator("#total", has_text="156 labels").wait_for()
    assert page.locator("#list li.accepted, #list li.rejected").count() == 0


def test_filters_narrow_the_list_and_survive_a_reload(page: Any) -> None:
    page.locator("select[name=rule]").select_option("vote")
    page.locator("#total", has_text="1 label").wait_for()
    assert "1 of 3 votes" in page.locator("main").inner_text()
    page.reload()
    page.locator("#total", has_text="1 label").wait_for()
    assert current(page) == "3"


def test_a_long_list_grows_as_it_is_scrolled(page: Any) -> None:
    assert page.locator("#list li").count() == 100
    page.locator("#list li").last.scroll_into_view_if_needed()
    page.locator("#list li").nth(150).wait_for()
    assert page.locator("#list li").count() == 156


def test_what_a_label_says_is_never_markup(page: Any) -> None:
    page.locator("#list [data-line='5']").click()
    page.locator("main .prompt pre", has_text="<b>&x").wait_for()
    assert page.locator("main b").count() == 0


def test_two_reviewers_do_not_overwrite_each_other(page: Any, browser: Any) -> None:
    other = browser.new_page()
    other.goto(page.url)
    other.locator("main .answer pre").wait_for()
    page.keyboard.press("a")
    page.locator("#list li.accepted").wait_for()
    other.keyboard.press("r")
    other.locator("#notice", has_text="somebody else").wait_for()
    assert other.locator("main .chip.accepted").count() == 1
    other.close()


def test_a_crowded_label_is_shown_whole(browser: Any, tmp_path: Path) -> None:
    rows = votes("x" * 4000, *("long " * 400,) * 2, gold="g", checks={"regex": False, "exact": True})
    with reviewing(tmp_path, rows) as url:
        page = browser.new_page(viewport={"width": 1024, "height": 700})
        page.goto(url)
        page.locator("main .answer pre").wait_for()
        width = page.evaluate("document.documentElement.scrollWidth")
        page.close()
    assert width <= 1024
