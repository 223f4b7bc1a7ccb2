"""/v1/embeddings, through the official client too, and what it refuses."""

import asyncio
import base64
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from decant_serve.engines.hf.loading import load
from decant_serve.engines.hf.vectors import EmbeddingJob, embed_some
from decant_serve.engines.protocol import EngineSettings
from decant_serve.engines.transformers import as_in_training
from decant_serve.target import find_target

pytestmark = pytest.mark.timeout(240)

Serve = Callable[..., Any]


@pytest.fixture(scope="module", params=["scripted", "openai", "llamacpp", "transformers"])
def server(
    request: pytest.FixtureRequest, serve_for_session: Serve, write_script: Callable[..., Path]
) -> Iterator[Any]:
    """The engines that have embeddings."""
    if request.param in ("llamacpp", "transformers"):
        yield request.getfixturevalue(f"{request.param}_embedder")
        return
    with serve_for_session(write_script({"chunks": ["hi"]})) as scripted:
        if request.param == "scripted":
            yield scripted
            return
        remote = ("--base-url", scripted.base_url, "--model-name", scripted.model)
        with serve_for_session(*remote) as running:
            yield running


@pytest.fixture(scope="module")
def llamacpp_embedder(serve_for_session: Serve, tiny_gguf: Path) -> Iterator[Any]:
    """The tiny model's mean states, out of its GGUF file."""
    with serve_for_session(tiny_gguf, "--parallel", 4, "--context", 512, "--pooling", "mean") as running:
        yield running


@pytest.fixture(scope="module")
def transformers_embedder(
    serve_for_session: Serve, tiny_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The same out of its checkpoint, where the folder itself says how to pool."""

    def say(folder: Path) -> None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')

    folder = tiny_model.save(tmp_path_factory.mktemp("pooled") / "tiny", breaking=say)
    with serve_for_session(folder, "--parallel", 4, "--pooling", "model") as running:
        yield running


CROWD = ["cat " * length for length in (3, 300, 40, 200, 1, 450)]


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


def test_the_last_states_of_a_crowd_are_those_of_each_text_alone(serve: Serve, tiny_gguf: Path) -> None:
    with serve(tiny_gguf, "--pooling", "last", "--parallel", 4, "--context", 512) as server:
        together = [item["embedding"] for item in embed(server, CROWD).json()["data"]]
        for text, found in zip(CROWD, together, strict=True):
            assert found == pytest.approx(vector(server, text), abs=1e-3)


def test_both_engines_find_the_same_vectors_alone_and_in_a_crowd(
    llamacpp_embedder: Any, transformers_embedder: Any
) -> None:
    alone = [vector(llamacpp_embedder, text) for text in CROWD]
    for server in (llamacpp_embedder, transformers_embedder):
        together = [item["embedding"] for item in embed(server, CROWD).json()["data"]]
        for one, other in zip(alone, together, strict=True):
            # The GGUF file holds the weights in 16 bits.
            assert sum(a * b for a, b in zip(one, other, strict=True)) == pytest.approx(1.0, abs=2e-4)
        longer = embed(server, ["cat", "cat " * 600])
        assert longer.status_code == 400
        assert longer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(("pooling", "place"), [("last", -1), ("cls", 0)])
def test_the_last_or_first_state_can_stand_for_a_text(tiny_folder: Path, pooling: Any, place: int) -> None:
    settings = EngineSettings(find_target(tiny_folder), Path("/unused"), 1, 512, 1, pooling=pooling)
    loaded = load(as_in_training(settings))
    ids = [9, 8, 7, 6]

    async def vectors(inputs: list[list[int]]) -> list[list[float]]:
        job = EmbeddingJob(inputs)
        with torch.inference_mode():
            embed_some(loaded, job)
        job.finish()
        return await job.result()

    whole, other = asyncio.run(vectors([ids, [5, *ids, 4, 3]]))
    states = loaded.model.model(torch.tensor([ids])).last_hidden_state[0]
    expected = torch.nn.functional.normalize(states[place], dim=-1)
    assert whole == pytest.approx(expected.tolist(), abs=1e-5)
    assert other != pytest.approx(expected.tolist(), abs=1e-2)


def test_a_model_that_does_not_say_how_to_pool_is_refused(
    tiny_model: Any, tmp_path: Path, run_decant: Callable[..., Any]
) -> None:
    done = run_decant("serve", tiny_model.save(tmp_path / "tiny"), "--port", "0", "--pooling", "model")
    assert done.returncode == 2
    assert "give --pooling mean, last or cls" in done.stderr


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
    assert "pooling is for the engines llamacpp and transformers" in done.stderr
