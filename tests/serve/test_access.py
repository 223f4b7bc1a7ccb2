"""Who is let in, and how much each may use."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from decant.errors import ConfigError
from decant.wire import ChatRequest, CompletionRequest
from decant_serve.access import load_access
from decant_serve.openai_errors import ApiFault
from decant_serve.rate_limit import RateLimit
from decant_serve.token_estimate import request_tokens

pytestmark = pytest.mark.timeout(240)

ALICE, BOB, CAROL = ("sk-" + letter * 20 for letter in "abc")


def table(name: str, key: str, limits: str = "") -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f'[[keys]]\nname = "{name}"\nsha256 = "{digest}"\n{limits}\n'


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    tables = [table("alice", ALICE), table("bob", BOB, "requests_per_minute = 2")]
    path.write_text("\n".join([*tables, table("carol", CAROL, "tokens_per_minute = 5")]))
    return path


@pytest.fixture(scope="module")
def server(
    serve_for_session: Callable[..., Any], write_script: Callable[..., Path], keys_file: Path
) -> Iterator[Any]:
    """A server with three keys, on every address."""
    script = write_script({"chunks": ["fine"] * 4, "prompt_tokens": 6})
    with serve_for_session(script, "--api-keys", keys_file, "--host", "0.0.0.0") as running:
        yield running


def ask(server: Any, key: str | None, **headers: str) -> Any:
    given = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"model": server.model, "messages": [{"role": "user", "content": "hi"}]}
    return server.http.post("/v1/chat/completions", json=body, headers={**given, **headers})


@pytest.mark.parametrize("key", [None, "sk-nobody", ALICE + "a", ALICE[:-1], "\u00e9\u00e9"])
def test_a_request_without_a_known_key_is_a_401(server: Any, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
    response = server.http.get("/v1/models", headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "x-request-id" in response.headers


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/v1/requests/x/timing", "/nowhere"])
def test_only_the_probes_are_open(server: Any, path: str) -> None:
    assert server.http.get(path).status_code == 401
    assert server.http.get("/health").status_code == server.http.get("/ready").status_code == 200


def test_requests_that_are_not_let_in_are_counted(server: Any) -> None:
    server.http.get("/v1/models")
    text = server.http.get("/metrics", headers={"Authorization": f"Bearer {ALICE}"}).text
    assert int(text.partition("\ndecant_unauthorized_total ")[2].split()[0]) >= 1


def test_a_timing_is_shown_to_whoever_sent_the_request(server: Any) -> None:
    assert ask(server, ALICE, **{"x-request-id": "alices"}).status_code == 200
    path = "/v1/requests/alices/timing"
    own = server.http.get(path, headers={"Authorization": f"Bearer {ALICE}"})
    assert own.json()["key"] == "alice"
    assert server.http.get(path, headers={"Authorization": f"Bearer {CAROL}"}).status_code == 404


def test_a_key_that_used_up_its_requests_waits(server: Any) -> None:
    first, second, third = (ask(server, BOB) for _ in range(3))
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    assert 20 <= int(third.headers["retry-after"]) <= 30
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert ask(server, ALICE).status_code == 200


def test_a_key_that_overdrew_its_tokens_waits_until_the_debt_is_paid(server: Any) -> None:
    assert ask(server, CAROL).status_code == 200
    refused = ask(server, CAROL)
    assert refused.status_code == 429
    assert 100_000 < int(refused.headers["retry-after-ms"]) <= 120_000


def test_the_official_client_says_who_it_is(server: Any) -> None:
    with openai.OpenAI(base_url=server.base_url, api_key=ALICE, max_retries=0) as client:
        assert client.models.list().data[0].id == server.model
    with (
        openai.OpenAI(base_url=server.base_url, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_no_key_and_no_prompt_is_logged(server: Any) -> None:
    ask(server, ALICE)
    logged = server.log.read_text()
    assert ALICE not in logged
    assert hashlib.sha256(ALICE.encode()).hexdigest() not in logged


def test_a_public_address_without_keys_is_refused_unless_said(
    serve: Callable[..., Any], run_decant: Callable[..., Any], write_script: Callable[..., Path]
) -> None:
    script = write_script({"chunks": ["hi"]})
    done = run_decant("serve", script, "--port", "0", "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "--api-keys" in done.stderr
    with serve(script, "--host", "0.0.0.0", "--insecure") as server:
        assert server.chat("hi").status_code == 200


def test_buckets_refill_evenly() -> None:
    now = [0.0]
    limit = RateLimit(requests_per_minute=60, tokens_per_minute=None, clock=lambda: now[0])
    for _ in range(60):
        limit.enter()
    with pytest.raises(ApiFault) as refused:
        limit.enter()
    assert refused.value.headers["retry-after-ms"] == "1000"
    now[0] = 1.0
    limit.enter()
    now[0] = 1000.0
    assert limit.headers()["x-ratelimit-remaining-requests"] == "60"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "keys"),
        ('[[keys]]\nname = "a"\nsha256 = "plain text"', "sha256"),
        (table("a", ALICE) + table("a", BOB), "the same name"),
        (table("a", ALICE) + table("b", ALICE), "the same key"),
    ],
)
def test_a_keys_file_that_cannot_be_meant_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_access(path, variable=None)


def test_keys_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEYS", f"{ALICE}, {BOB}")
    assert not load_access(None, variable="SOME_KEYS").is_open
    monkeypatch.setenv("SOME_KEYS", "short")
    with pytest.raises(ConfigError, match="at least 16"):
        load_access(None, variable="SOME_KEYS")


def test_a_burst_cannot_spend_what_its_key_has_not() -> None:
    now = [0.0]
    limit = RateLimit(requests_per_minute=9, tokens_per_minute=600, clock=lambda: now[0])
    limit.reserve(500)
    limit.enter()
    with pytest.raises(ApiFault) as refused:
        limit.reserve(200)
    # 100 are left and 10 come per second; the refused request itself is given back.
    assert refused.value.headers["retry-after-ms"] == "10000"
    assert limit.headers()["x-ratelimit-remaining-requests"] == "9"
    limit.settle(reserved=500, used=20)
    assert limit.headers()["x-ratelimit-remaining-tokens"] == "580"
    limit.reserve(200)


def test_a_request_over_a_whole_minute_is_let_in_alone_and_leaves_a_debt() -> None:
    now = [0.0]
    limit = RateLimit(requests_per_minute=None, tokens_per_minute=60, clock=lambda: now[0])
    limit.reserve(100)
    limit.settle(reserved=100, used=90)
    with pytest.raises(ApiFault) as refused:
        limit.reserve(10)
    assert refused.value.headers["Retry-After"] == "40"
    now[0] = 40.0
    limit.reserve(10)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 7}, 10 + 4 + 7),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 8}]}], "n": 2},
            2 + 4 + 512,
        ),
        ({"prompt": [1, 2, 3], "max_tokens": 5}, 8),
        ({"prompt": "\ud800", "max_tokens": 1}, 2),
    ],
)
def test_what_a_request_may_come_to_is_its_text_and_its_limit(body: dict[str, Any], tokens: int) -> None:
    kind = ChatRequest if "messages" in body else CompletionRequest
    assert request_tokens(kind.model_validate({"model": "m", **body})) == tokens
