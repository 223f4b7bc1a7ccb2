"""GET /v1/requests, and the files of the page without a browser."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(240)

KEYS = {name: f"{name}-has-a-key-of-some-length" for name in ("alice", "bob")}


@pytest.fixture(scope="module")
def server(
    serve_for_session: Callable[..., Any],
    write_script: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    tables = [f'[[keys]]\nname = "{name}"\nsha256 = "{digest}"\n' for name, digest in digests.items()]
    keys.write_text("\n".join(tables))
    with serve_for_session(write_script({"chunks": ["a", "b"]}), "--api-keys", keys) as running:
        yield running


def as_user(server: Any, name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


def ask(server: Any, name: str, request_id: str) -> None:
    body = {"model": server.model, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    headers = {**as_user(server, name), "x-request-id": request_id}
    assert server.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200


def test_each_key_sees_its_own_requests_newest_first(server: Any) -> None:
    for name, request_id in (("alice", "a1"), ("bob", "b1"), ("alice", "a2")):
        ask(server, name, request_id)
    listed = server.http.get("/v1/requests", headers=as_user(server, "alice")).json()
    assert listed["object"] == "list"
    assert [(row["request_id"], row["state"]) for row in listed["data"]] == [("a2", "ended"), ("a1", "ended")]
    assert "chunk_times_s" not in listed["data"][0]
    assert server.http.get("/v1/requests").status_code == 401


@pytest.mark.parametrize("limit", ["0", "-1", "201", "many", "1e2", "", "9" * 30, "٣"])
def test_a_limit_that_is_none_is_refused(server: Any, limit: str) -> None:
    answer = server.http.get("/v1/requests", params={"limit": limit}, headers=as_user(server, "bob"))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "limit"


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/page/page.css", "/page/icon.svg"])
def test_the_page_needs_no_key_and_may_run_nothing_from_elsewhere(server: Any, path: str) -> None:
    answer = server.http.get(path)
    assert answer.status_code == 200
    assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_uses_nothing_that_its_own_rules_forbid() -> None:
    folder = Path(__file__).parents[2] / "serve/decant_serve/pages"
    text = "".join(path.read_text() for path in folder.glob("*.*") if path.suffix in (".html", ".js", ".css"))
    outside = text.replace("http://www.w3.org/2000/svg", "")
    assert "innerHTML" not in text
    assert not [word for word in ("http://", "https://", " style=", "onclick=") if word in outside]
