"""What every engine must do, whatever it is: one contract over all of them."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

pytestmark = pytest.mark.timeout(240)

Serve = Callable[..., Any]
HELLO = {"chunks": ["Hello", " world", " and", " all", " of", " us"], "gaps_s": [0.01], "prompt_tokens": 3}


ENGINES = ["scripted", "openai", "llamacpp", "transformers", pytest.param("vllm", marks=pytest.mark.vllm)]


@pytest.fixture(scope="session")
def scripted_model(write_script: Callable[..., Path]) -> Path:
    return write_script(HELLO)


@pytest.fixture(scope="session", params=ENGINES)
def server(request: pytest.FixtureRequest, serve_for_session: Serve, scripted_model: Path) -> Iterator[Any]:
    """A running server on each engine."""
    if request.param == "scripted":
        with serve_for_session(scripted_model) as running:
            yield running
    elif request.param == "openai":
        with serve_for_session(scripted_model) as remote:
            remote_options = ("--base-url", remote.base_url, "--model-name", remote.model)
            with serve_for_session(*remote_options) as running:
                yield running
    else:
        yield request.getfixturevalue(f"{request.param}_server")


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream that ended as it should."""
    *chunks, last = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert last == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def test_the_model_is_listed_and_described(server: Any) -> None:
    listed = server.http.get("/v1/models").json()
    page = server.http.get(f"/v1/models/{server.model}").json()
    assert [item["id"] for item in listed["data"]] == [server.model] == [page["id"]]
    assert page["decant"]["engine"] in ("scripted", "openai", "llamacpp", "transformers", "vllm")


def test_health_and_readiness_are_apart(server: Any) -> None:
    assert server.http.get("/health").json()["status"] == "ok"
    assert server.http.get("/ready").json() == {"ready": True, "state": "ready"}


def test_a_chat_has_an_answer_and_counts_its_tokens(server: Any) -> None:
    body = server.chat("hello cat 12", max_tokens=4).json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 4
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 4


def test_a_stream_says_the_same_as_a_whole_answer(server: Any) -> None:
    whole = server.chat("the mat said 3 4", max_tokens=5).json()["choices"][0]
    chunks = events(server.chat("the mat said 3 4", max_tokens=5, stream=True))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == whole["message"]["content"]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]


def test_a_usage_event_comes_only_when_it_is_asked_for(server: Any) -> None:
    options = {"max_tokens": 3, "stream": True}
    asked = events(server.chat("hi", **options, stream_options={"include_usage": True}))
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"]["completion_tokens"] == 3
    assert all(chunk["choices"] for chunk in events(server.chat("hi", **options)))


def test_text_completions_work_whole_and_streamed(server: Any) -> None:
    body = {"model": server.model, "prompt": "hello cat", "max_tokens": 4, "temperature": 0}
    whole = server.http.post("/v1/completions", json=body).json()
    chunks = events(server.http.post("/v1/completions", json={**body, "stream": True}))
    texts = [choice["text"] for chunk in chunks for choice in chunk["choices"]]
    assert whole["object"] == "text_completion"
    assert "".join(texts) == whole["choices"][0]["text"]


def test_the_timing_of_a_stream_can_be_looked_up(server: Any) -> None:
    options = {"stream_options": {"include_usage": True}}
    timing = server.timing(server.chat("hello", max_tokens=4, stream=True, **options))
    assert 0 <= timing["queue_s"] <= timing["ttfb_s"] <= timing["ttft_s"] <= timing["e2e_s"]
    assert timing["completion_tokens"] == 4
    assert timing["status"] == 200
    assert timing["error_kind"] is None


def test_a_given_request_id_is_kept(server: Any) -> None:
    body = {"model": server.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    response = server.http.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert server.http.get("/v1/requests/mine-1/timing").json()["request_id"] == "mine-1"


async def test_many_at_once_are_all_answered(server: Any) -> None:
    async with httpx.AsyncClient(base_url=server.base_url, timeout=30.0) as client:
        body = {"model": server.model, "max_tokens": 5, "seed": 1}
        asked = [{**body, "messages": [{"role": "user", "content": "hello" * n}]} for n in range(1, 13)]
        answers = await asyncio.gather(*(client.post("/chat/completions", json=one) for one in asked))
    assert [answer.status_code for answer in answers] == [200] * 12
    assert all(answer.json()["usage"]["completion_tokens"] == 5 for answer in answers)


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"model": "another"}, 404, "model", "model_not_found"),
        ({"model": None}, 400, "model", "missing_required_parameter"),
        ({"messages": None}, 400, "messages", None),
        ({"messages": []}, 400, "messages", None),
        ({"messages": "hi"}, 400, "messages", None),
        ({"temperature": "warm"}, 400, "temperature", None),
        ({"max_tokens": 0}, 400, "max_tokens", None),
    ],
)
def test_a_bad_request_is_refused_in_the_shape_of_openai(
    server: Any, change: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    response = server.chat("hi", **change)
    error = response.json()["error"]
    assert response.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"].split(".")[0] == param
    assert code is None or error["code"] == code


def test_malformed_json_is_refused(server: Any) -> None:
    response = server.http.post("/v1/chat/completions", content=b'{"model": ')
    assert response.status_code == 400
    assert "not JSON" in response.json()["error"]["message"]


def test_the_official_client_works(server: Any) -> None:
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "hello cat 12"}]
        options: Any = {"model": server.model, "messages": messages, "temperature": 0, "max_tokens": 5}
        whole = client.chat.completions.create(**options)
        with client.chat.completions.create(**options, stream=True) as stream:
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert streamed == whole.choices[0].message.content
        assert client.models.retrieve(server.model).id == server.model
        options["model"] = "another"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**options)
