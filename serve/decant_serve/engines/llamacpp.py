"""GGUF through llama.cpp's own server: a `llama-server` on the PATH, else xllamacpp in a child process."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from decant.errors import MissingExtraError
from decant.golden import Observation
from decant_serve.calls import Features
from decant_serve.engines.local import HOST, ask, is_healthy
from decant_serve.engines.protocol import EngineDescription, EngineSettings, Launch, Pooling, Upstream
from decant_serve.structured import chosen_function

_SAMPLING = {
    *(
        "temperature",
        "top_p",
        "seed",
        "stop",
        "max_tokens",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
    ),
    *("top_k", "min_p", "repeat_penalty", "grammar", "cache_prompt", "n", "logprobs"),
}
# `response_format` is ignored in text completions. Of several answers the usage counts one, so they are asked
# for one by one.
FEATURES = Features(
    chat=frozenset(_SAMPLING | {"max_completion_tokens", "top_logprobs", "response_format"}),
    completions=frozenset(_SAMPLING),
    splits_choices=True,
    chat_logprobs=True,
)
TOOL_FEATURES = replace(FEATURES, chat=FEATURES.chat | {"tools", "tool_choice", "parallel_tool_calls"})

_CERTAIN_BIAS = 1000.0


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """What the child process needs; `context` is the sum over all slots."""

    model: str
    alias: str
    socket: str
    threads: int
    context: int
    parallel: int
    pooling: Pooling = "off"


def build(settings: EngineSettings) -> "LlamaCpp":
    """The engine for a GGUF file; MissingExtraError where there is neither a binary nor the bindings."""
    binary = shutil.which("llama-server")
    if binary is None and importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtraError("xllamacpp", "llamacpp")
    return LlamaCpp(settings, binary)


class LlamaCpp:
    """llama.cpp's server: continuous batching, OpenAI's sampling defaults, the model's own chat template."""

    def __init__(self, settings: EngineSettings, binary: str | None) -> None:
        assert settings.target.path is not None
        self._binary = binary
        self._socket = settings.socket
        self._child = LlamaSettings(
            model=str(settings.target.path),
            alias=settings.target.name,
            socket=str(settings.socket),
            threads=settings.threads,
            context=settings.context * settings.parallel,
            parallel=settings.parallel,
            pooling=settings.pooling,
        )

    def describe(self) -> EngineDescription:
        """llama.cpp closes the connection after a streamed answer, so none is kept."""
        runtime = f"llama-server ({self._binary})" if self._binary else f"xllamacpp {version('xllamacpp')}"
        return EngineDescription(
            name="llamacpp",
            upstream=Upstream(HOST, self._socket, keeps_connections=False),
            details={"runtime": runtime},
        )

    def launch(self) -> Launch:
        """The binary with its own flags, or our child around the bindings."""
        if self._binary:
            return Launch((self._binary, *server_flags(self._child, cpu_flags=_cpu_flags())))
        settings = json.dumps(asdict(self._child))
        return Launch((sys.executable, "-m", "decant_serve.engines.llamacpp_child", settings))

    async def probe(self, client: httpx.AsyncClient) -> Features | None:
        """/health answers 503 while the model loads. Tools that its template does not know are ignored."""
        if not await is_healthy(client):
            return None
        template = (await ask(client, "/props")).get("chat_template_caps") or {}
        features = TOOL_FEATURES if template.get("supports_tools") else FEATURES
        return replace(features, embeddings=self._child.pooling != "off")

    async def observe(
        self, client: httpx.AsyncClient, messages: Sequence[Mapping[str, str]], max_tokens: int
    ) -> Observation:
        """Renders, tokenizes and decodes greedily by llama.cpp's own routes, which chat requests share."""
        rendered = str((await ask(client, "/apply-template", {"messages": list(messages)}))["prompt"])
        text = {"content": rendered, "add_special": True, "parse_special": True}
        prompt_ids: list[int] = (await ask(client, "/tokenize", text))["tokens"]
        answer = await ask(client, "/completion", {**_greedy(prompt_ids, max_tokens), "return_tokens": True})
        ended = answer["stop_type"] == "eos"
        taken: list[int] = answer["tokens"]
        logprobs = await _logprobs(client, prompt_ids, taken, answer["completion_probabilities"])
        without_end = len(taken) - ended
        return Observation(
            rendered=await self._with_bos(client, rendered),
            prompt_ids=tuple(prompt_ids),
            token_ids=tuple(taken[:without_end]),
            logprobs=logprobs[:without_end],
            finish="stop" if ended else "length",
        )

    async def _with_bos(self, client: httpx.AsyncClient, rendered: str) -> str:
        """llama.cpp cuts the begin token off what a template renders and lets the tokenizer add it again."""
        properties = await ask(client, "/props")
        bos = properties.get("bos_token") or ""
        cut = "bos_token" in properties.get("chat_template", "") and not rendered.startswith(bos)
        return bos + rendered if cut else rendered

    def prepare(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """As it is, but for log probabilities, and for a choice of one function, which llama.cpp ignores."""
        body = _with_logprobs(body)
        name = chosen_function(body.get("tool_choice"))
        if name is None:
            return body
        tools = [tool for tool in body["tools"] if tool["function"]["name"] == name]
        return {**body, "tools": tools, "tool_choice": "required"}


def server_flags(settings: LlamaSettings, *, cpu_flags: frozenset[str]) -> tuple[str, ...]:
    """llama-server's command line, with OpenAI's sampling defaults instead of llama.cpp's own.

    On a CPU that advertises AMX, a binary built for it may end in SIGSEGV inside a virtual machine
    (`ldtilecfg`); without the repacked weight buffers it does not take that path.
    """
    flags = ["--model", settings.model, "--alias", settings.alias, "--host", settings.socket]
    flags += ["--ctx-size", str(settings.context), "--parallel", str(settings.parallel)]
    flags += ["--threads", str(settings.threads), "--threads-batch", str(settings.threads), "--jinja"]
    flags += ["--temp", "1", "--top-k", "0", "--top-p", "1", "--min-p", "0"]
    if settings.pooling != "off":
        flags += ["--embeddings", *pooled_batch_flags(settings)]
    return (*flags, "--no-repack") if "amx_tile" in cpu_flags else tuple(flags)


def pooled_batch_flags(settings: LlamaSettings) -> list[str]:
    """An input must lie in one batch to be pooled; the model's own pooling needs no flag.

    Without a unified cache llama.cpp cuts batches to equal lengths, which spoils the mean of all inputs in
    one but the shortest.
    """
    batch = str(settings.context // settings.parallel)
    pooling = [] if settings.pooling == "model" else ["--pooling", settings.pooling]
    return [*pooling, "--kv-unified", "--batch-size", batch, "--ubatch-size", batch]


def _with_logprobs(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """llama.cpp gives none where no alternative is asked for, and twenty where a chat does not say."""
    if "messages" in body:
        return (
            {**body, "top_logprobs": max(1, body.get("top_logprobs") or 0)} if body.get("logprobs") else body
        )
    return {**body, "logprobs": 1} if body.get("logprobs") == 0 else body


def _cpu_flags() -> frozenset[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return frozenset()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _greedy(prompt_ids: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """Log probabilities before any sampler, of the likeliest token, with no reuse of an earlier prompt."""
    return {
        "prompt": list(prompt_ids),
        "n_predict": max_tokens,
        "temperature": 0.0,
        "samplers": ["temperature"],
        "n_probs": 1,
        "cache_prompt": False,
    }


async def _logprobs(
    client: httpx.AsyncClient, prompt_ids: list[int], tokens: list[int], steps: list[dict[str, Any]]
) -> tuple[float, ...]:
    """The log probability of each token. llama.cpp leaves out those of tokens that end within a character.

    Such a position is asked for alone: a harmless token is forced there, and what would have been likeliest
    is still reported.
    """
    known = certain_matches(tokens, [step["id"] for step in steps])
    harmless: list[int] = []
    if len(known) < len(tokens):
        harmless = (await ask(client, "/tokenize", {"content": "a", "add_special": False}))["tokens"]
    logprobs: list[float] = []
    for position in range(len(tokens)):
        if position in known:
            logprobs.append(steps[known[position]]["logprob"])
            continue
        forced = {
            **_greedy([*prompt_ids, *tokens[:position]], 1),
            "logit_bias": [[harmless[0], _CERTAIN_BIAS]],
        }
        (step,) = (await ask(client, "/completion", forced))["completion_probabilities"]
        logprobs.append(step["top_logprobs"][0]["logprob"])
    return tuple(logprobs)


def certain_matches(tokens: Sequence[int], kept: Sequence[int]) -> dict[int, int]:
    """Position -> index in `kept` (some of `tokens`, in order), for the positions that leave no doubt."""
    from_left = _first_matches(tokens, kept)
    from_right = _first_matches(tokens[::-1], kept[::-1])
    mirrored = [len(tokens) - 1 - position for position in reversed(from_right)]
    pairs = zip(from_left, mirrored, strict=True)
    return {left: place for place, (left, right) in enumerate(pairs) if left == right}


def _first_matches(tokens: Sequence[int], kept: Sequence[int]) -> list[int]:
    positions: list[int] = []
    for token in kept:
        start = positions[-1] + 1 if positions else 0
        positions.append(next(at for at in range(start, len(tokens)) if tokens[at] == token))
    return positions
