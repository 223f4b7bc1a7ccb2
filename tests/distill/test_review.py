"""`decant review`: what the page is told, what it may change, and who is let in."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from decant.errors import DataError
from decant.reviews import Review, add_review, latest, read_reviews
from decant.store import NewLabel, RequestStore
from decant_distill.review_app import Desk, build_app
from decant_distill.review_index import LabelIndex, read_dropped
from tests.distill.loopback_teacher import wait_until
from tests.distill.test_curate import label, votes, write

TOKEN = "t0ken"


def labels() -> list[Any]:
    return [
        *votes("2+2", "4", "4", "5", gold="4"),
        label("cut", 0, None, error_class="length", error="cut at 16"),
        label("<b>&x", 0, "yes", checks={"regex": False}, check_notes={"regex": "does not match"}),
        {
            "id": "never",
            "sample": 0,
            "status": "failed",
            "error_class": "bad_row",
            "error": "line 9: not JSON",
        },
        "{half",
    ]


@contextmanager
def reviewing(folder: Path, rows: list[Any] | None = None) -> Generator[str]:
    """The page's address."""
    path = write(folder / "labels.jsonl", labels() if rows is None else rows)
    dropped = write(folder / "dropped.jsonl", [{"line": 3, "rule": "vote", "reason": "1 of 3 votes"}])
    index = LabelIndex.read(path, read_dropped(dropped))
    with RequestStore.open(folder / "labels.store.sqlite") as requests:
        app = build_app(Desk(index, requests, reviewer="ann"), token=TOKEN)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.005)
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}/{TOKEN}/"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[httpx.Client]:
    with reviewing(tmp_path) as url, httpx.Client(base_url=url) as client:
        yield client


def shown(page: httpx.Client, **chosen: Any) -> list[int]:
    return [item["line"] for item in page.get("api/labels", params=chosen).json()["items"]]


def decide(page: httpx.Client, line: int, decision: str, version: int = 1, **body: Any) -> httpx.Response:
    return page.post(f"api/labels/{line}", json={"version": version, "decision": decision, **body})


@pytest.mark.parametrize(
    ("chosen", "lines"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"status": "failed"}, [4, 6]),
        ({"error": "length"}, [4]),
        ({"rule": "vote"}, [3]),
        ({"check": "regex"}, [5]),
        ({"disagrees": "true"}, [1, 2, 3]),
        ({"below": "0.5"}, [3, 4, 6]),
        ({"text": "THOUGHT 2"}, [3]),
        ({"text": "&x"}, [5]),
        ({"order": "unsure", "status": "done"}, [3, 1, 2, 5]),
        ({"start": "1", "count": "2"}, [2, 3]),
    ],
)
def test_filters_show_what_they_say(page: httpx.Client, chosen: dict[str, str], lines: list[int]) -> None:
    assert shown(page, **chosen) == lines


def test_a_decision_is_a_new_version_and_nothing_is_overwritten(page: httpx.Client, tmp_path: Path) -> None:
    decide(page, 3, "reject")
    decide(page, 3, "edit", 2, answer=" 4 ", reasoning="two and two", note="a slip")
    look = decide(page, 3, "open", 3).json()
    assert [version["decision"] for version in look["versions"]] == ["reject", "edit", "open"]
    assert (look["now"]["answer"], look["item"]["state"]) == ("5", "unreviewed")
    with RequestStore.open(tmp_path / "labels.store.sqlite") as requests:
        (versions,) = read_reviews(requests, ["2+2-2", "2+2-0"]).values()
    assert (versions[1].answer, versions[1].reasoning, versions[1].note) == ("4", "two and two", "a slip")
    assert {version.by for version in versions} == {"ann"}


def test_an_edit_shows_instead_of_the_answer_and_the_filters_follow(page: httpx.Client) -> None:
    look = decide(page, 4, "edit", answer="7").json()
    assert (look["now"]["answer"], look["item"]["state"]) == ("7", "edited")
    assert (shown(page, state="edited"), 4 in shown(page, state="unreviewed")) == ([4], False)
    assert page.get("api/summary").json()["facets"]["state"] == {"unreviewed": 5, "edited": 1}


def test_of_two_reviewers_the_second_is_told_and_loses_nothing(page: httpx.Client) -> None:
    assert decide(page, 1, "accept").status_code == 200
    late = decide(page, 1, "reject")
    assert (late.status_code, "somebody else" in late.json()["error"]) == (409, True)
    assert decide(page, 1, "reject", 2).json()["item"]["state"] == "rejected"


@pytest.mark.parametrize(
    ("line", "body", "status"),
    [
        (4, {"decision": "accept"}, 422),
        (1, {"decision": "edit", "answer": "  "}, 422),
        (6, {"decision": "reject"}, 422),
        (99, {"decision": "reject"}, 422),
        (1, {"decision": "burn"}, 400),
        (1, {"decision": "accept", "oops": 1}, 400),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(
    page: httpx.Client, line: int, body: dict[str, Any], status: int
) -> None:
    response = page.post(f"api/labels/{line}", json={"version": 1, **body})
    assert (response.status_code, bool(response.json()["error"])) == (status, True)


def test_only_this_page_with_its_token_is_let_in(page: httpx.Client) -> None:
    root = str(page.base_url).removesuffix(f"{TOKEN}/")
    port = root.rstrip("/").rpartition(":")[2]
    assert page.get("").status_code == 200
    assert httpx.get(f"{root}api/summary").status_code == 404
    assert httpx.get(f"{root}T0ken/api/summary").status_code == 404
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"host": f"rebound.example:{port}"},
        {"sec-fetch-site": "cross-site"},
    ):
        assert page.get("api/summary", headers=headers).status_code == 403
    form = page.post("api/labels/1", data={"version": "1", "decision": "reject"})
    assert (form.status_code, shown(page, state="rejected")) == (400, [])


def test_the_page_loads_nothing_from_elsewhere(page: httpx.Client) -> None:
    response = page.get("")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "http" not in response.text.replace("http-equiv", "")


def test_a_label_file_written_anew_stops_the_review(page: httpx.Client, tmp_path: Path) -> None:
    write(tmp_path / "labels.jsonl", votes("other", "1"))
    response = page.get("api/labels/1")
    assert (response.status_code, "written anew" in response.json()["error"]) == (422, True)


def test_a_version_whose_writer_died_decides_nothing_and_keeps_its_number(tmp_path: Path) -> None:
    with RequestStore.open(tmp_path / "store.sqlite") as requests:
        first = Review(of="a", version=1, decision="reject")
        add_review(requests, first, row_id="r", sample=0, asked=[])
        (row,) = requests.get_many([first.key]).values()
        torn = Review(of="a", version=2, decision="accept")
        request = {"messages": [], "review": {**row.request["review"], "version": 2, "decision": "accept"}}
        requests.add([NewLabel(key=torn.key, row_id="r", sample=0, request=request)])
        versions = read_reviews(requests, ["a"])
    assert [(version.version, version.decision) for version in versions["a"]] == [(1, "reject"), (2, "open")]
    assert latest(versions) == {}


def test_fields_of_the_page_are_json(page: httpx.Client) -> None:
    look = page.get("api/labels/5").json()
    assert look["label"]["id"] == "<b>&x"
    assert json.loads(json.dumps(look)) == look


def test_the_command_says_where_the_page_is_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.jsonl", votes("2+2", "4"))
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "decant", "review", str(path), "--ready-file", str(ready)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        wait_until(ready.exists)
        url = json.loads(ready.read_text())["url"]
        assert httpx.get(f"{url}api/summary").json()["facets"]["status"] == {"done": 1}
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, url in said, "is kept in" in said) == (0, True, True)


def test_a_file_without_labels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no line holds a label"):
        LabelIndex.read(write(tmp_path / "labels.jsonl", [{"text": "x"}, "{half", "[1]"]))
    with pytest.raises(DataError, match="cannot read the labels"):
        LabelIndex.read(tmp_path / "none.jsonl")
