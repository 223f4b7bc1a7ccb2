"""What single engines add to the contract, and what they refuse."""

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(240)

Serve = Callable[..., Any]

LLAMA_SERVER = """\
import argparse, json, os, sys
from dataclasses import asdict
from decant_serve.engines.llamacpp import LlamaSettings

flags = argparse.ArgumentParser()
for name in ("--model", "--alias", "--host", "--temp", "--top-p", "--min-p"):
    flags.add_argument(name, required=True)
for name in ("--ctx-size", "--parallel", "--threads", "--threads-batch", "--top-k"):
    flags.add_argument(name, required=True, type=int)
flags.add_argument("--jinja", action="store_true")
flags.add_argument("--no-repack", action="store_true")
asked = flags.parse_args()
settings = LlamaSettings(
    asked.model, asked.alias, asked.host, asked.threads, asked.ctx_size, asked.parallel
)
command = [sys.executable, "-m", "decant_serve.engines.llamacpp_child", json.dumps(asdict(settings))]
os.execv(sys.executable, command)
"""


@pytest.fixture(params=["transformers_server", "llamacpp_server"])
def server(request: pytest.FixtureRequest) -> Any:
    """The engines that run a model."""
    return request.getfixturevalue(request.param)


def text(response: Any) -> str:
    return response.json()["choices"][0]["message"]["content"]


def test_the_page_says_which_golden_prompts_were_reproduced(server: Any) -> None:
    page = server.http.get(f"/v1/models/{server.model}").json()["decant"]
    assert page["golden"]["checked"] == 3
    assert page["golden"]["breaks"] == []
    assert len(page["manifest_sha256"]) == 64
    assert page["size_bytes"] > 0


def test_log_probabilities_come_with_each_token(server: Any) -> None:
    body = server.chat("hello cat 12", max_tokens=4, logprobs=True, top_logprobs=2).json()
    scored = body["choices"][0]["logprobs"]["content"]
    assert all(token["logprob"] <= 0 for token in scored)
    assert all(len(token["top_logprobs"]) == 2 for token in scored)
    assert scored[0]["logprob"] == pytest.approx(scored[0]["top_logprobs"][0]["logprob"])


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(server: Any) -> None:
    whole = text(server.chat("Grüße to all 🙂", max_tokens=12))
    stop = whole[3:5]
    stopped = server.chat("Grüße to all 🙂", max_tokens=12, stop=[stop])
    assert text(stopped) == whole[: whole.index(stop)]
    assert stopped.json()["choices"][0]["finish_reason"] == "stop"


def test_a_seed_makes_sampling_repeat_and_another_one_does_not(server: Any) -> None:
    drawn = [text(server.chat("hi", temperature=1.0, max_tokens=12, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_prompt_longer_than_the_context_is_refused(server: Any) -> None:
    response = server.chat("cat " * 2000)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_an_answer_that_ends_by_itself_stops_there(server: Any) -> None:
    body = server.chat("hello cat 12", max_tokens=16).json()
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 8


def test_both_engines_count_and_answer_alike(transformers_server: Any, llamacpp_server: Any) -> None:
    answers = [server.chat("hello cat 12") for server in (transformers_server, llamacpp_server)]
    first, second = (answer.json()["usage"] for answer in answers)
    assert first["prompt_tokens"] == second["prompt_tokens"]
    assert first["completion_tokens"] == second["completion_tokens"]
    # Of a character cut in half at the end, llama.cpp shows nothing.
    assert text(answers[0]).rstrip("\ufffd") == text(answers[1])


def test_llamacpp_reports_its_own_timings(llamacpp_server: Any) -> None:
    timing = llamacpp_server.timing(llamacpp_server.chat("hello", max_tokens=3, stream=True))
    assert timing["engine"]["predicted_n"] == 3


@pytest.mark.parametrize("change", [{"n": 129}, {"tools": [{"type": "function"}]}, {"logit_bias": {"5": 1}}])
def test_what_an_engine_lacks_is_refused_by_name(
    transformers_server: Any, llamacpp_server: Any, change: dict[str, Any]
) -> None:
    has = {"logit_bias": llamacpp_server}
    for server in (transformers_server, llamacpp_server):
        response = server.chat("hi", max_tokens=2, **change)
        name = next(iter(change))
        assert response.status_code == (200 if has.get(name) is server else 400)
        assert response.status_code == 200 or response.json()["error"]["param"] == name


def test_several_answers_come_from_one_request(server: Any) -> None:
    body = server.chat("hi", n=3, temperature=1.0, seed=1, max_tokens=6).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in body["choices"]}) > 1
    assert body["usage"]["completion_tokens"] == sum([6, 6, 6])
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 18


def test_several_answers_are_streamed_as_one(server: Any) -> None:
    options = {"n": 3, "temperature": 0, "max_tokens": 5, "stream": True}
    response = server.chat("the mat said 3 4", **options, stream_options={"include_usage": True})
    *lines, last = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    *chunks, ending = [json.loads(line) for line in lines]
    texts = ["", "", ""]
    for choice in (chunk["choices"][0] for chunk in chunks):
        texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [text(server.chat("the mat said 3 4", temperature=0, max_tokens=5))] * 3
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert (ending["usage"]["completion_tokens"], last) == (15, "[DONE]")
    assert server.timing(response)["completion_tokens"] == 15


def test_text_completions_have_log_probabilities_in_their_own_shape(server: Any) -> None:
    body = {"model": server.model, "prompt": "hello cat 12", "max_tokens": 3, "temperature": 0}
    for top in (0, 2):
        whole = server.http.post("/v1/completions", json={**body, "logprobs": top}).json()["choices"][0]
        scored = whole["logprobs"]
        assert len(scored["tokens"]) == len(scored["token_logprobs"]) == len(scored["top_logprobs"]) == 3
        assert all(len(alternatives) == top for alternatives in scored["top_logprobs"])
        assert scored["text_offset"][0] == 0
    lines = server.http.post("/v1/completions", json={**body, "logprobs": 2, "stream": True}).text
    chunks = [json.loads(line[6:]) for line in lines.split("\n\n") if line and "[DONE]" not in line]
    pieces = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice.get("logprobs")]
    assert [token for piece in pieces for token in piece["tokens"]] == scored["tokens"]
    assert [offset for piece in pieces for offset in piece["text_offset"]] == scored["text_offset"]


def test_a_chat_has_no_alternatives_that_it_did_not_ask_for(server: Any) -> None:
    body = server.chat("hello cat 12", max_tokens=2, logprobs=True).json()
    scored = body["choices"][0]["logprobs"]["content"]
    # Of a token that ends within a character, llama.cpp reports nothing.
    assert 1 <= len(scored) <= 2
    assert all(token["top_logprobs"] == [] for token in scored)


def test_a_prompt_of_token_ids_is_taken_as_it_is(server: Any) -> None:
    body = {"model": server.model, "prompt": [9, 8, 7], "max_tokens": 2, "temperature": 0}
    answer = server.http.post("/v1/completions", json=body).json()
    assert answer["usage"]["prompt_tokens"] == 3


def test_a_llama_server_on_the_path_is_preferred(
    serve: Serve, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "bin" / "llama-server"
    binary.parent.mkdir()
    binary.write_text(f"#!{sys.executable}\n{LLAMA_SERVER}")
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{binary.parent}{os.pathsep}{os.environ['PATH']}")
    with serve(tiny_gguf) as server:
        page = server.http.get(f"/v1/models/{server.model}").json()
        assert page["decant"]["runtime"] == f"llama-server ({binary})"
        assert page["decant"]["golden"]["checked"] == 3


def test_reasoning_is_streamed_apart_from_the_answer(serve: Serve, write_script: Callable[..., Path]) -> None:
    with serve(write_script({"reasoning": ["hm", " so"], "chunks": ["42"]})) as server:
        message = server.chat("hi").json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("hm so", "42")
        assert '"reasoning_content":"hm"' in server.chat("hi", stream=True).text


@pytest.mark.parametrize(
    ("script", "complaint"),
    [("{", "JSON"), ('{"answers": []}', "answers"), ('{"answers": [{"chunk": []}]}', "chunk")],
)
def test_a_script_that_makes_no_sense_is_refused(
    script: str, complaint: str, tmp_path: Path, run_decant: Callable[..., Any]
) -> None:
    path = tmp_path / "script.json"
    path.write_text(script)
    done = run_decant("serve", path, "--port", "0")
    assert done.returncode == 2
    assert complaint in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give either MODEL or base_url"),
        (["--base-url", "http://127.0.0.1:9/v1"], "needs model_name"),
        (
            ["--base-url", "http://127.0.0.1:9/v1", "--model-name", "m", "--api-key-env", "NO_SUCH_KEY"],
            "NO_SUCH_KEY",
        ),
    ],
)
def test_a_command_line_that_cannot_be_meant_is_refused(
    arguments: list[str], complaint: str, run_decant: Callable[..., Any]
) -> None:
    done = run_decant("serve", *arguments, "--port", "0")
    assert done.returncode == 2
    assert complaint in done.stderr


def test_an_unreachable_remote_endpoint_is_reported(run_decant: Callable[..., Any]) -> None:
    remote = ("--base-url", "http://127.0.0.1:9/v1", "--model-name", "m")
    done = run_decant("serve", *remote, "--port", "0", "--start-limit-s", "0.5")
    assert done.returncode == 2
    assert "http://127.0.0.1:9 did not answer within 0.5 s" in done.stderr


def test_check_only_prints_one_line_of_json(
    run_decant: Callable[..., Any], write_script: Callable[..., Path]
) -> None:
    done = run_decant("serve", write_script({"chunks": ["hi"]}), "--check-only")
    assert done.returncode == 0
    assert json.loads(done.stdout)["checked"] == 0
