"""Random requests after the gateway's own OpenAPI document: no answer is a 5xx, whatever is asked."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install 'decant[fuzz]'")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

pytestmark = [
    pytest.mark.timeout(240),
    # hypothesis and schemathesis warn of what they deprecate in each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
KEY = "a-key-that-is-long-enough"
EXAMPLES = 40
OPERATIONS = (
    *(("/v1/chat/completions", "POST"), ("/v1/completions", "POST"), ("/v1/embeddings", "POST")),
    *(("/v1/responses", "POST"), ("/v1/models/{model}", "GET"), ("/v1/requests", "GET")),
    ("/v1/requests/{request_id}/timing", "GET"),
)


@pytest.fixture(scope="module")
def server(
    serve_for_session: Callable[..., Any],
    write_script: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "fuzz"\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n')
    with serve_for_session(write_script({"chunks": ["a", "b"]}), "--api-keys", keys) as running:
        running.http.headers["authorization"] = f"Bearer {KEY}"
        yield running


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_after_the_document_is_answered_with_a_5xx(server: Any, path: str, method: str) -> None:
    operation: Any = schemathesis.openapi.from_dict(server.http.get("/openapi.json").json())[path][method]
    failures: list[tuple[int, Any]] = []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = server.model
        answer = case.call(base_url=str(server.http.base_url), headers={"authorization": f"Bearer {KEY}"})
        # The document lets a client set a deadline of its own, however short.
        is_deadline = answer.status_code == 504 and "X-Decant-Timeout-S" in case.headers
        if answer.status_code >= 500 and not is_deadline:
            failures.append((answer.status_code, case.body))

    ask()
    assert failures == []
