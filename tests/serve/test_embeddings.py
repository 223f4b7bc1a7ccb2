"""/v1/embeddings, through the official client too, and what it refuses."""

import base64
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.timeout(240)

Serve = Callable[..., Any]


@pytest.fixture(scope="module", params=["scripted", "openai", "llamacpp"])
def server(
    request: pytest.FixtureRequest, serve_for_session: Serve, write_script: Callable[..., Path]
) -> Iterator[Any]:
    """The engines that have embeddings."""
    if request.param == "llamacpp":
        gguf = request.getfixturevalue("tiny_gguf")
        with serve_for_session(gguf, "--parallel", 4, "--pooling", "mean") as running:
            yield running
        return
    with serve_for_session(write_script({"chunks": ["hi"]})) as scripted:
        if request.param == "scripted":
            yield scripted
            return
        remote = ("--base-url", scripted.base_url, "--model-name", scripted.model)
        with serve_for_session(*remote) as running:
            yield running


def embed(server: Any, given: Any, **options: Any) -> Any:
    return server.http.post("/v1/embeddings", json={"model": server.model, "input": given, **options})


def vector(server: Any, given: Any, **options: Any) -> list[float]:
    return embed(server, given, **options).json()["data"][0]["embedding"]


def test_a_text_has_one_vector_of_length_one_and_keeps_it(server: Any) -> None:
    first, again, other = (vector(server, text) for text in ("hello cat", "hello cat", "the mat"))
    assert first == pytest.approx(again, abs=1e-4)
    assert first != pytest.approx(other, abs=1e-2)
    assert math.hypot(*first) == pytest.approx(1.0, abs=1e-3)


def test_several_inputs_come_back_in_their_order_with_one_usage(server: Any) -> None:
    body = embed(server, ["hello cat", "the mat said"]).json()
    assert [item["index"] for item in body["data"]] == [0, 1]
    assert body["data"][1]["embedding"] == pytest.approx(vector(server, "the mat said"), abs=1e-3)
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] > 2
    assert server.timing(embed(server, "hello"))["prompt_tokens"] >= 1


def test_base64_is_the_same_vector_as_little_endian_floats(server: Any) -> None:
    plain, packed = vector(server, "hello"), embed(server, "hello", encoding_format="base64").json()
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(plain)}f", raw)) == pytest.approx(plain, abs=1e-4)


def test_fewer_dimensions_are_the_first_ones_at_length_one(server: Any) -> None:
    plain, cut = vector(server, "hello"), vector(server, "hello", dimensions=8)
    assert len(cut) == 8
    assert math.hypot(*cut) == pytest.approx(1.0)
    assert cut == pytest.approx([value / math.hypot(*plain[:8]) for value in plain[:8]], abs=1e-3)


def test_the_official_client_works(server: Any) -> None:
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model=server.model, input=["hello cat", "the mat"])
    assert answer.data[0].embedding == pytest.approx(vector(server, "hello cat"), abs=1e-3)


def test_token_ids_are_inputs_too(server: Any) -> None:
    assert embed(server, [9, 8, 7]).json()["usage"]["prompt_tokens"] == 3
    assert len(embed(server, [[9, 8], [7]]).json()["data"]) == 2


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"given": ""}, "input"),
        ({"given": []}, "input"),
        ({"given": ["a", ""]}, "input.1"),
        ({"given": 7}, "input"),
        ({"given": [-1]}, "input"),
        ({"given": ["x"] * 2049}, "input"),
        ({"given": None}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 100_000}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"stream": True}, "stream"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(server: Any, change: dict[str, Any], param: str) -> None:
    response = (
        embed(server, **{"given": "hi", **change})
        if "input" not in change
        else embed(server, change["input"])
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_chats_go_on_as_before_beside_embeddings(server: Any) -> None:
    assert server.chat("hello cat 12", max_tokens=2).status_code == 200


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_llama_cpp_gives_each_text_of_a_crowd_the_vector_that_it_has_alone(
    serve: Serve, tiny_gguf: Path, pooling: str
) -> None:
    texts = ["cat " * length for length in (3, 300, 40, 200, 1, 450)]
    with serve(tiny_gguf, "--pooling", pooling, "--parallel", 4, "--context", 512) as server:
        together = [item["embedding"] for item in embed(server, texts).json()["data"]]
        for text, found in zip(texts, together, strict=True):
            assert found == pytest.approx(vector(server, text), abs=1e-3)
        longer = embed(server, "cat " * 600)
        assert longer.status_code == 400
        assert longer.json()["error"]["code"] == "context_length_exceeded"


def test_an_engine_without_embeddings_says_so(transformers_server: Any, llamacpp_server: Any) -> None:
    for server in (transformers_server, llamacpp_server):
        refused = embed(server, "hi")
        assert refused.status_code == 400
        assert "no embeddings" in refused.json()["error"]["message"]


def test_pooling_is_for_the_engine_that_has_it(
    run_decant: Callable[..., Any], write_script: Callable[..., Path]
) -> None:
    done = run_decant("serve", write_script({"chunks": ["hi"]}), "--port", "0", "--pooling", "mean")
    assert done.returncode == 2
    assert "pooling is for the llamacpp engine" in done.stderr
