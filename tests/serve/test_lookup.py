"""Requests answered from a store of labels: which hit, which go to the model, and how a hit looks."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.datastructures import Headers

from decant.ask import ask_key
from decant.reviews import Decision, Review, add_review
from decant.store import Answer, NewLabel, RequestStore
from decant.wire import request_key
from decant_serve.calls import Features, read_call
from decant_serve.lookup import Wanted, choose, open_lookup

pytestmark = pytest.mark.timeout(240)


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]


def label(store: RequestStore, question: str, sample: int = 0, *, version: str = "v1", **answer: Any) -> str:
    """A label as `decant label` buys it: with a teacher, a temperature and a seed of its own."""
    request = {"model": "big", "messages": chat(question), "max_tokens": 256, "temperature": 0.7,
               "seed": 1000 + sample}  # fmt: skip
    key = request_key(model="big", revision=None, request=request, sample_index=sample)
    store.add([NewLabel(key=key, row_id="", sample=sample, request=request, prompt_version=version)])
    given: dict[str, Any] = {
        "response": "so\nAnswer: yes",
        "answer": "yes",
        "finish_reason": "stop",
        "prompt_tokens": 9,
        "completion_tokens": 4,
        **answer,
    }
    store.finish(key, Answer(**given))
    return key


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "store.sqlite"
    with RequestStore.open(path) as store:
        label(store, "known")
        label(store, "thought", response="<think>hm</think>Answer: é")
        label(store, "cut", finish_reason="length")
        label(store, "unread", answer=None)
        label(store, "uncounted", prompt_tokens=None, completion_tokens=None)
        for sample, said in enumerate(("no", "yes", "Yes.")):
            label(store, "voted", sample, response=f"Answer: {said} {sample}", answer=said)
        for sample, said in enumerate(("no", "yes")):
            label(store, "split", sample, answer=said)
        decide(store, label(store, "rejected"), "rejected", "reject")
        decide(store, label(store, "edited"), "edited", "edit")
        for sample in range(2):
            label(store, "accepted", sample, response="Answer: no", answer="no")
        decide(store, label(store, "accepted", 2, response="Answer: yes"), "accepted", "accept")
    return path


def decide(store: RequestStore, key: str, question: str, decision: Decision) -> None:
    """What a person says of a label."""
    review = Review(of=key, version=1, decision=decision, answer="no" if decision == "edit" else None)
    add_review(store, review, row_id="", sample=0, asked=chat(question))


@pytest.fixture(scope="module")
def server(
    serve_for_session: Callable[..., Any], write_script: Callable[..., Path], place: Path
) -> Iterator[Any]:
    script = write_script({"chunks": ["from", " the model"], "prompt_tokens": 3})
    with serve_for_session(script, "--lookup", place) as running:
        yield running


def ask(server: Any, question: str, *, headers: dict[str, str] | None = None, **options: Any) -> Any:
    body = {"model": server.model, "messages": chat(question), **options}
    return server.http.post("/v1/chat/completions", json=body, headers=headers)


def source(response: Any) -> str:
    return response.headers["x-decant-source"]


def test_a_question_that_was_labeled_is_answered_from_the_store(server: Any) -> None:
    answer = ask(server, "known", temperature=0, user="me", max_completion_tokens=50)
    body = answer.json()
    assert source(answer) == "lookup"
    assert (body["model"], body["object"]) == (server.model, "chat.completion")
    assert body["choices"][0]["message"]["content"] == "so\nAnswer: yes"
    assert (body["choices"][0]["finish_reason"], body["usage"]["total_tokens"]) == ("stop", 13)
    record = server.timing(answer)
    assert (record["source"], record["completion_tokens"], record["queue_s"]) == ("lookup", 4, 0.0)
    assert source(ask(server, "unknown")) == "model"


def test_text_in_parts_is_the_same_question_and_reasoning_stands_apart(server: Any) -> None:
    messages: list[Any] = chat("thought")
    messages[1]["content"] = [{"type": "text", "text": "thou"}, {"type": "text", "text": "ght"}]
    answer = ask(server, "thought", messages=messages)
    message = answer.json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Answer: é", "hm")


def test_a_label_that_a_person_accepted_outweighs_the_others(server: Any) -> None:
    answer = ask(server, "accepted")
    assert (source(answer), answer.json()["choices"][0]["message"]["content"]) == ("lookup", "Answer: yes")


async def test_who_asks_for_log_probabilities_goes_to_the_model(place: Path) -> None:
    body = {"model": "m", "messages": chat("known")}
    features = Features(chat=frozenset(), completions=frozenset(), takes_anything=True)
    wanted = Wanted(ttl_s=None, prompt_version=None, min_share=0.5, accepted=None)
    lookup = open_lookup(place, wanted)
    plain, curious = (
        read_call("chat", None, {**body, **more}, engine="openai", features=features)
        for more in ({}, {"logprobs": True, "top_logprobs": 2})
    )
    assert await lookup.find(plain, Headers()) is not None
    assert await lookup.find(curious, Headers()) is None
    assert lookup.counts["skipped"] == 1
    lookup.close()


def test_a_streaming_client_gets_a_stream_with_its_usage(server: Any) -> None:
    messages: Any = chat("known")
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model=server.model,
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert stream.response.headers["x-decant-source"] == "lookup"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "so\nAnswer: yes"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 13


def test_the_responses_api_is_looked_up_too(server: Any) -> None:
    body = {"model": server.model, "instructions": "Be brief.", "input": "known"}
    answer = server.http.post("/v1/responses", json=body)
    assert source(answer) == "lookup"
    assert answer.json()["output"][0]["content"][0]["text"] == "so\nAnswer: yes"


@pytest.mark.parametrize(
    ("question", "changes"),
    [
        ("Known", {}),
        ("known ", {}),
        ("cut", {}),
        ("unread", {}),
        ("split", {}),
        ("rejected", {}),
        ("edited", {}),
        ("known", {"max_tokens": 3}),
        ("uncounted", {"max_tokens": 10}),
        ("known", {"stop": ["yes"]}),
        ("known", {"messages": chat("known")[1:]}),
        ("known", {"headers": {"cache-control": "no-cache"}}),
    ],
)
def test_what_is_not_surely_the_same_goes_to_the_model(
    server: Any, question: str, changes: dict[str, Any]
) -> None:
    answer = ask(server, question, **changes)
    assert (answer.status_code, source(answer)) == (200, "model")


def test_most_samples_decide_and_unknown_usage_is_not_made_up(server: Any) -> None:
    assert ask(server, "voted").json()["choices"][0]["message"]["content"] == "Answer: yes 1"
    assert "usage" not in ask(server, "uncounted").json()


def test_look_ups_are_counted(server: Any) -> None:
    ask(server, "known")
    ask(server, "unknown")
    page = server.http.get("/metrics").text
    for result in ("hit", "miss", "skipped", "failed"):
        assert f'decant_lookups_total{{model="{server.model}",result="{result}"}}' in page


def test_age_version_and_curation_narrow_what_is_given(
    serve: Callable[..., Any], write_script: Callable[..., Path], tmp_path: Path
) -> None:
    place, kept = tmp_path / "store.sqlite", tmp_path / "train.jsonl"
    with RequestStore.open(place, clock=lambda: 1_000_000.0) as old:
        label(old, "old")
    with RequestStore.open(place) as store:
        keys = [label(store, "kept"), label(store, "other version", version="v2")]
        label(store, "dropped")
    kept.write_text("".join(json.dumps({"label_key": key}) + "\n" for key in keys))
    options = ["--lookup-ttl-s", 3600, "--lookup-prompt-version", "v1", "--lookup-accepted", kept]
    with serve(write_script({"chunks": ["x"]}), "--lookup", place, *options) as server:
        sources = {name: source(ask(server, name)) for name in ("kept", "old", "dropped", "other version")}
    assert sources == {"kept": "lookup", "old": "model", "dropped": "model", "other version": "model"}


def test_a_store_that_fails_leaves_the_requests_to_the_model(
    serve: Callable[..., Any], write_script: Callable[..., Path], tmp_path: Path
) -> None:
    place = tmp_path / "store.sqlite"
    with RequestStore.open(place) as store:
        label(store, "known")
    with serve(write_script({"chunks": ["x"]}), "--lookup", place) as server:
        assert source(ask(server, "known")) == "lookup"
        with place.open("r+b") as file:
            file.truncate(0)
        place.with_name("store.sqlite-wal").unlink(missing_ok=True)
        answers = [ask(server, f"other {number}") for number in range(3)]
        assert {(answer.status_code, source(answer)) for answer in answers} == {(200, "model")}


def test_a_store_that_is_not_there_stops_the_start(
    run_decant: Callable[..., Any], write_script: Callable[..., Path], tmp_path: Path
) -> None:
    done = run_decant("serve", write_script({"chunks": ["x"]}), "--lookup", tmp_path / "none", "--check-only")
    assert (done.returncode, "no such request store" in done.stderr) == (2, True)
    assert not (tmp_path / "none").exists()


def test_a_share_that_is_too_small_is_no_answer(tmp_path: Path) -> None:
    with RequestStore.open(tmp_path / "s") as store:
        for sample, said in enumerate(("yes", "yes", "no", None)):
            label(store, "q", sample, answer=said)
        labels = store.answers_to(ask_key({"messages": chat("q")}))
    for share, is_given in ((0.5, True), (0.6, False)):
        wanted = Wanted(ttl_s=None, prompt_version=None, min_share=share, accepted=None)
        assert (choose(labels, wanted, token_limit=None) is not None) == is_given
