"""The table of features in serve/README.md, asked of every engine that runs here."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(240)

README = Path(__file__).parents[2] / "serve/README.md"
ENGINES = ["scripted", "openai", "llamacpp", "transformers", pytest.param("vllm", marks=pytest.mark.vllm)]
QUESTION = "the mat said 3 4"
TOKENS = 16
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "pick", "parameters": {"type": "object"}}}
YES = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": {**YES, "additionalProperties": False}},
}


def table() -> dict[str, dict[str, str]]:
    """Row -> engine -> what the table says."""
    lines = README.read_text(encoding="utf-8").splitlines()
    first = lines.index("| | `llamacpp` | `transformers` | `vllm` | `scripted` | `openai` |")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in _until_empty(lines[first:])]
    engines = [name.strip("`") for name in cells[0][1:]]
    return {row[0]: dict(zip(engines, row[1:], strict=True)) for row in cells[2:]}


def _until_empty(lines: Sequence[str]) -> Sequence[str]:
    return lines[: lines.index("")]


TABLE = table()


@pytest.fixture(scope="module")
def scripted_server(
    serve_for_session: Callable[..., Any], write_script: Callable[..., Path]
) -> Iterator[Any]:
    """A script as long as the answers that are asked for."""
    with serve_for_session(write_script({"chunks": [" word"] * TOKENS})) as running:
        yield running


@pytest.fixture(scope="module")
def openai_server(serve_for_session: Callable[..., Any], scripted_server: Any) -> Iterator[Any]:
    """Another server as the remote endpoint."""
    remote = ("--base-url", scripted_server.base_url, "--model-name", scripted_server.model)
    with serve_for_session(*remote) as running:
        yield running


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def server(request: pytest.FixtureRequest, engine: str) -> Any:
    """A plain model on that engine: no pooling, no template with tools."""
    return request.getfixturevalue(f"{engine}_server")


def chat(server: Any, **options: Any) -> Any:
    return server.chat(QUESTION, **{"max_tokens": TOKENS, **options})


def complete(server: Any, **options: Any) -> Any:
    body = {"model": server.model, "prompt": QUESTION, "max_tokens": TOKENS, "temperature": 0, **options}
    return server.http.post("/v1/completions", json=body)


def embed(server: Any) -> Any:
    return server.http.post("/v1/embeddings", json={"model": server.model, "input": QUESTION})


def said(response: Any) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def is_greedy(server: Any, **options: Any) -> bool:
    """Whether hot sampling under these options still takes the likeliest token at each step."""
    return said(chat(server, temperature=1.5, seed=3, **options)) == said(chat(server))


def changes(server: Any, **options: Any) -> bool:
    return said(chat(server, **options)) != said(chat(server))


def scored(response: Any, *, top: int) -> bool:
    content = response.json()["choices"][0]["logprobs"]["content"]
    return bool(content) and all(len(token["top_logprobs"]) == top for token in content)


def repeats(server: Any) -> bool:
    drawn = [said(chat(server, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    return drawn[0] == drawn[1] != drawn[2]


def stops(server: Any) -> bool:
    whole = said(chat(server))
    return said(chat(server, stop=[whole[3:5]])) == whole[: whole.index(whole[3:5])]


def counts(server: Any, name: str) -> bool:
    response = server.chat(QUESTION, **{name: 3})
    return response.json()["usage"]["completion_tokens"] == 3


Probe = tuple[Callable[[Any], Any], Callable[[Any], bool]]
"""What asks for the feature, and what shows that it is honoured."""

CHOICES = {"n": 3, "temperature": 1.5, "seed": 1}
PROBES: Mapping[str, Mapping[str, Probe]] = {
    "`temperature`, `top_p`, `seed`": {
        "temperature": (
            lambda s: chat(s, temperature=1.5),
            lambda s: not is_greedy(s),
        ),
        "top_p": (lambda s: chat(s, top_p=0.001), lambda s: is_greedy(s, top_p=0.001)),
        "seed": (lambda s: chat(s, seed=1), repeats),
    },
    "`max_tokens`, `max_completion_tokens`": {
        name: (
            lambda s, name=name: s.chat(QUESTION, **{name: 3}),
            lambda s, name=name: counts(s, name),
        )
        for name in ("max_tokens", "max_completion_tokens")
    },
    "`stop`": {"stop": (lambda s: chat(s, stop=["zzz"]), stops)},
    "`logprobs`, `top_logprobs` in chats": {
        "logprobs": (
            lambda s: chat(s, logprobs=True),
            lambda s: scored(chat(s, logprobs=True), top=0),
        ),
        "top_logprobs": (
            lambda s: chat(s, logprobs=True, top_logprobs=2),
            lambda s: scored(chat(s, logprobs=True, top_logprobs=2), top=2),
        ),
    },
    "`logprobs` in text completions": {
        "logprobs": (
            lambda s: complete(s, logprobs=2),
            lambda s: bool(complete(s, logprobs=2).json()["choices"][0]["logprobs"]["token_logprobs"]),
        )
    },
    "`n` above 1, up to 128": {
        "n": (
            lambda s: chat(s, **CHOICES),
            lambda s: len({c["message"]["content"] for c in chat(s, **CHOICES).json()["choices"]}) == 3,
        )
    },
    "embeddings": {"embeddings": (embed, lambda s: len(embed(s).json()["data"][0]["embedding"]) > 1)},
    "`presence_penalty`, `frequency_penalty`, `logit_bias`, `top_k`, `min_p`": {
        **{
            name: (
                lambda s, name=name: chat(s, **{name: 2.0}),
                lambda s, name=name: changes(s, **{name: 2.0}),
            )
            for name in ("presence_penalty", "frequency_penalty")
        },
        "logit_bias": (
            lambda s: chat(s, logit_bias={"70": 100}),
            lambda s: changes(s, logit_bias={"70": 100}),
        ),
        "top_k": (lambda s: chat(s, top_k=1), lambda s: is_greedy(s, top_k=1)),
        "min_p": (lambda s: chat(s, min_p=1.0), lambda s: is_greedy(s, min_p=1.0)),
    },
    "`grammar` (GBNF)": {
        "grammar": (
            lambda s: chat(s, grammar='root ::= "yes"'),
            lambda s: said(chat(s, grammar='root ::= "yes"')) == "yes",
        )
    },
    "`response_format` in chats": {
        "response_format": (
            lambda s: chat(s, response_format=FORMAT),
            lambda s: set(json.loads(said(chat(s, response_format=FORMAT, max_tokens=200)))) == {"yes"},
        )
    },
    "`tools`, `tool_choice`, `parallel_tool_calls`": {
        # What calls look like where a model makes them is test_structured's.
        "tools": (
            lambda s: chat(s, tools=[TOOL], tool_choice="required", parallel_tool_calls=False),
            lambda s: True,
        )
    },
    "several prompts in one text completion": {
        "prompt": (lambda s: complete(s, prompt=["a", "b"]), lambda s: True)
    },
}


def test_every_row_of_the_table_is_asked_for() -> None:
    assert set(TABLE) == set(PROBES)


@pytest.mark.parametrize("row", PROBES)
def test_the_table_says_what_each_engine_does(row: str, engine: str, server: Any) -> None:
    claim = TABLE[row][engine]
    for name, (ask, is_honoured) in PROBES[row].items():
        response = ask(server)
        if claim.startswith(("yes", "taken")):
            assert response.status_code == 200, (name, response.text)
            assert claim.startswith("taken") or is_honoured(server), name
        elif claim.startswith(("refused", "with ")):
            error = response.json()["error"]
            assert response.status_code == 400
            assert error["param"] in (*PROBES[row], "model"), name
        else:
            assert claim == "passed on"


def test_what_is_passed_on_is_judged_by_the_remote_endpoint(openai_server: Any, scripted_server: Any) -> None:
    for asks in (probe for row in PROBES.values() for probe, _ in row.values()):
        assert asks(openai_server).status_code == asks(scripted_server).status_code
