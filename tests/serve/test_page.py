"""The page at `/`, in a real Chromium: what a person sees of answers and of where their time went."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install 'decant[dev]'")

from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH"),
]
KEY = "a-key-that-is-long-enough"
QUICK = {
    "chunks": ["<b>four</b>", " words", " are", " here"],
    "ttft_s": 0.05,
    "gaps_s": [0.02],
    "prompt_tokens": 9,
}
SLOW = {"match": "slow", "chunks": ["it", " never", " ends"], "gaps_s": [0.1, 60.0]}
BROKEN = {"match": "break", "status": 500, "message": "the script has broken this"}
RECORD = {
    "request_id": "tp2",
    "model": "big",
    "engine_name": "vllm",
    "route": "chat",
    "streamed": True,
    "status": 200,
    "error_kind": None,
    "finish_reason": "stop",
    "key": None,
    "state": "ended",
    "accepted_at": "2026-01-01T10:00:00+00:00",
    "queue_s": 0.1,
    "ttft_s": 0.4,
    "e2e_s": 1.0,
    "prompt_tokens": 5,
    "completion_tokens": 8,
    "cached_tokens": None,
    "chunk_times_s": [0.4, 1.0],
    "breakdown": {
        "total_s": 1.0,
        "read_s": 0.0,
        "queue_s": 0.1,
        "engine_s": 0.9,
        "send_s": 0.0,
        "engine_queue_s": 0.0,
        "prefill_s": 0.3,
        "decode_s": 0.5,
        "residual_s": 0.1,
    },
    "ranks": [
        {"rank": 0, "compute_s": 0.25, "wait_s": 0.35, "comm_s": 0.1},
        {"rank": 1, "compute_s": 0.6, "wait_s": 0.0, "comm_s": 0.1},
    ],
}


@pytest.fixture(scope="module")
def server(serve_for_session: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two models by script."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "script.json").write_text(json.dumps({"answers": [SLOW, BROKEN, QUICK]}))
    table = '[[models]]\nmodel = "{}"\nmodel_name = "{}"\n'
    tables = [table.format(folder / "script.json", name) for name in ("first", "second")]
    (folder / "serve.toml").write_text("\n".join(tables))
    with serve_for_session("--config", folder / "serve.toml") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh profile; anything that the page's own rules block, or that fails in it, fails the test."""
    context = browser.new_context()
    context.set_default_timeout(20_000)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if "Content Security" in said.text else None)
    yield page
    context.close()
    assert faults == []


def address(server: Any, view: str = "") -> str:
    return server.base_url.removesuffix("/v1") + "/" + view


def ask(page: Page, question: str) -> None:
    page.fill("#question", question)
    page.keyboard.press("Enter")


def test_two_models_answer_side_by_side_each_with_its_timing(server: Any, page: Page) -> None:
    page.goto(address(server))
    page.check("#compare")
    ask(page, "hello")
    answers = page.locator(".said.assistant")
    expect(answers.locator("a")).to_have_count(2)
    # The model's markup is text here.
    expect(answers.locator(".text >> text=<b>four</b> words are here")).to_have_count(2)
    assert [pane.input_value() for pane in page.locator(".pane select").all()] == ["first", "second"]
    figures = answers.first.locator(".figures").inner_text()
    assert "9 in, 4 out" in figures
    assert "tok/s" in figures


def test_an_answer_can_be_stopped_and_the_server_knows(server: Any, page: Page) -> None:
    page.goto(address(server))
    ask(page, "slow")
    expect(page.locator(".said.assistant .text").last).to_contain_text("it never")
    page.click("#stop")
    expect(page.locator(".said.assistant .foot")).to_contain_text("stopped")
    page.goto(address(server, "#requests"))
    expect(page.locator("#list .status").first).to_have_text("200 client gone")


def test_an_error_is_shown_where_the_answer_would_be(server: Any, page: Page) -> None:
    page.goto(address(server))
    ask(page, "break")
    expect(page.locator("[role=alert]:visible")).to_contain_text("the script has broken this")
    expect(page.locator("#send")).to_be_visible()


def test_a_request_opens_into_its_waterfall_by_keyboard_alone(server: Any, page: Page) -> None:
    for question in ("one", "two"):
        server.http.post("/v1/chat/completions", json=body(question, stream=True))
    page.goto(address(server, "#requests"))
    links = page.locator("#list [data-request]")
    links.first.focus()
    page.keyboard.press("ArrowDown")
    second = links.nth(1).get_attribute("data-request")
    page.keyboard.press("Enter")
    drawn = page.locator("#detail svg.waterfall")
    assert "prefill 50.0 ms" in (drawn.get_attribute("aria-label") or "")
    assert page.url.endswith(f"#requests/{second}")


def body(question: str, **options: Any) -> dict[str, Any]:
    return {"model": "first", "messages": [{"role": "user", "content": question}], **options}


def test_a_request_in_flight_is_listed_before_it_ends(server: Any, page: Page) -> None:
    with httpx.stream("POST", f"{server.base_url}/chat/completions", json=body("slow", stream=True)) as going:
        pieces = going.iter_raw()
        next(pieces)
        page.goto(address(server, "#requests"))
        expect(page.locator("#list .status").first).to_have_text("in flight")
    expect(page.locator("#list .status").first).to_have_text("200 client gone")


def test_ranks_show_who_computed_and_who_waited(server: Any, page: Page) -> None:
    page.route("**/v1/requests/tp2/timing", lambda route: route.fulfill(json=RECORD))
    page.goto(address(server, "#requests/tp2"))
    drawn = page.locator("#detail svg.waterfall")
    spoken = drawn.get_attribute("aria-label") or ""
    assert "rank 0: compute 250 ms, wait 350 ms, communication 100 ms" in spoken
    widths = [float(part.get_attribute("width") or 0) for part in drawn.locator("rect.compute").all()]
    assert widths[1] / widths[0] == pytest.approx(0.6 / 0.25)


def test_where_ranks_are_timed_the_stages_are_those_of_the_ledger(server: Any, page: Page) -> None:
    ledger = {
        "gateway_s": 0.1,
        "frontend_s": 0.05,
        "engine_queue_s": None,
        "prefill_s": 0.3,
        "decode_s": 0.4,
        "others_s": 0.0,
        "gaps_s": 0.1,
        "output_s": 0.05,
        "residual_s": 0.0,
        "total_s": 1.0,
    }
    record = {**RECORD, "shards": {"latency": ledger}}
    page.route("**/v1/requests/tp2/timing", lambda route: route.fulfill(json=record))
    page.goto(address(server, "#requests/tp2"))
    drawn = page.locator("#detail svg.waterfall")
    spoken = drawn.get_attribute("aria-label") or ""
    assert spoken.startswith("gateway 100 ms; front end 50.0 ms; prefill 300 ms; decode 400 ms; others")
    begins = [drawn.locator(f"rect.{kind}").first.get_attribute("x") for kind in ("prefill", "compute")]
    assert begins[0] == begins[1]


def test_a_server_with_keys_asks_for_one_and_keeps_it_in_the_tab(
    serve: Callable[..., Any], write_script: Callable[..., Path], tmp_path: Path, page: Page
) -> None:
    keys = tmp_path / "keys.toml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(f'[[keys]]\nname = "alice"\nsha256 = "{digest}"\n')
    with serve(write_script(QUICK), "--api-keys", keys) as server:
        page.goto(address(server))
        for key in ("a-wrong-one", KEY):
            page.fill("#key", key)
            page.keyboard.press("Enter")
            if key != KEY:
                expect(page.locator("#key-fault")).to_contain_text("Incorrect")
        expect(page.locator("#model-0 option")).to_have_count(1)
        ask(page, "hello")
        expect(page.locator(".said.assistant a")).to_have_count(1)
        page.reload()
        expect(page.locator("#model-0 option")).to_have_count(1)
        assert page.evaluate("localStorage.getItem('decant-api-key')") is None
