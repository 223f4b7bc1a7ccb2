"""A request body becomes a validated call, or a 4xx that names the parameter at fault."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, cast

from pydantic import ValidationError

from decant.wire import ChatRequest, CompletionRequest
from decant_serve.logprobs_voice import LogprobsVoice
from decant_serve.openai_errors import invalid_value, refusal
from decant_serve.structured import check_response_format, check_tools
from decant_serve.token_estimate import request_tokens
from decant_serve.voices import PlainVoice, Voice

Route = Literal["chat", "completions"]
"""What engines have; the gateway's other routes are written in terms of these."""

PATHS: Mapping[Route, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
EMBEDDINGS_PATH = "/v1/embeddings"

# OpenAI's own limit.
_MOST_CHOICES = 128

_LONGEST_INTEGER = 20
_MAYBE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_MODELS: Mapping[Route, type[ChatRequest] | type[CompletionRequest]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
}
# What every engine has, and labels that ask for nothing.
_ALWAYS = frozenset(
    {
        "model",
        "messages",
        "prompt",
        "stream",
        "stream_options",
        "user",
        "safety_identifier",
        "prompt_cache_key",
    }
)
# What OpenAI documents, with the values that change nothing: these are taken even from an engine without it.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "max_completion_tokens": (),
    "max_tokens": (),
    "metadata": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "seed": (),
    "service_tier": ("auto", "default"),
    "stop": ([], ""),
    "store": (False,),
    "suffix": ("",),
    "temperature": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "top_p": (),
    "verbosity": (),
    "web_search_options": (),
}


@dataclass(frozen=True, slots=True)
class Features:
    """What an engine honours: parameter names per route, beside those that every engine has.

    `takes_anything` is for a remote endpoint, which judges for itself. With `usage_chunk` the engine ends a
    stream with a usage chunk when `stream_options.include_usage` asks for it. Where `splits_choices` is true,
    it gives one answer per request, and the gateway asks for each of `n`; where `chat_logprobs` is true, its
    log probabilities always have the shape of chats.
    """

    chat: frozenset[str]
    completions: frozenset[str]
    takes_anything: bool = False
    usage_chunk: bool = True
    embeddings: bool = False
    splits_choices: bool = False
    chat_logprobs: bool = False

    def parameters(self, route: Route) -> frozenset[str]:
        """The names honoured on one route."""
        return self.chat if route == "chat" else self.completions


@dataclass(frozen=True, slots=True)
class Call:
    """One validated request: as sent to the engine's `path`, as read, and how its answer is written.

    `raw` holds the bytes of `body` as the client sent them; None where the gateway wrote the body itself.
    `tokens` is what it may come to, and `request` is None for embeddings.
    """

    path: str
    raw: bytes | None
    body: dict[str, Any]
    request: ChatRequest | CompletionRequest | None
    tokens: int
    voice: Voice = field(default_factory=PlainVoice)

    @property
    def streams(self) -> bool:
        """Whether the answer comes as a stream."""
        return self.request is not None and self.request.stream

    @property
    def includes_usage(self) -> bool:
        """Whether the client asked for the usage at the end of its stream."""
        return self.request is not None and self.request.include_usage

    @property
    def choices(self) -> int:
        """How many answers it asks for."""
        return 1 if self.request is None else self.request.n or 1


def parse_body(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body, with its `model` there; ApiFault for anything else."""
    try:
        body = json.loads(raw, parse_constant=_no_constant, parse_int=_integer, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise refusal(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise refusal("the body must be a JSON object", code="invalid_json")
    known = cast("dict[str, Any]", body)
    if not isinstance(known.get("model"), str):
        raise refusal("you must provide a model parameter", param="model", code="missing_required_parameter")
    if _MAYBE_SURROGATE.search(raw):
        _check_unicode(known)
    return known


def _check_unicode(body: Mapping[str, Any]) -> None:
    """ApiFault 400 for half a surrogate pair, which JSON can write and no tokenizer can read."""
    for name, value in body.items():
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            where = name.encode("utf-8", "replace").decode()
            raise invalid_value(where, "holds a lone surrogate, which is not Unicode text") from None


def read_call(
    route: Route, raw: bytes | None, body: dict[str, Any], *, engine: str, features: Features
) -> Call:
    """Checks a body against what its engine honours; ApiFault for what is malformed or unsupported."""
    if not features.takes_anything:
        for name, value in body.items():
            _check_parameter(name, value, route=route, engine=engine, features=features)
    try:
        request = _MODELS[route].model_validate(body, strict=True)
    except ValidationError as error:
        refuse_invalid(error)
    if not features.takes_anything:
        _check_values(request, takes_tools="tools" in features.parameters(route))
    voice = _logprobs_voice(request) if features.chat_logprobs else PlainVoice()
    return Call(PATHS[route], raw, body, request, request_tokens(request), voice)


def _logprobs_voice(request: ChatRequest | CompletionRequest) -> Voice:
    if isinstance(request, CompletionRequest):
        is_asked = request.logprobs is not None
        return LogprobsVoice(top=request.logprobs or 0, is_text=True) if is_asked else PlainVoice()
    return LogprobsVoice(top=request.top_logprobs or 0, is_text=False) if request.logprobs else PlainVoice()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int:
    # What does not fit into 64 bits is a fault of the client's, and would be one of the engine's.
    if len(text) > _LONGEST_INTEGER or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"the number {text[:30]} is out of range")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:30]} is out of range")
    return value


def _check_parameter(name: str, value: Any, *, route: Route, engine: str, features: Features) -> None:
    if value is None or name in _ALWAYS or name in features.parameters(route):
        return
    if name not in _NEUTRAL:
        raise refusal(f"Unrecognized request argument supplied: {name}", param=name, code="unknown_parameter")
    # In Python True == 1, and `n: true` is not `n: 1`.
    if any(value == same and isinstance(value, bool) == isinstance(same, bool) for same in _NEUTRAL[name]):
        return
    given = json.dumps(value)[:60]
    message = f"the {engine} engine does not support {name}={given} on {PATHS[route]}"
    raise refusal(message, param=name, code="unsupported_parameter")


def refuse_invalid(error: ValidationError) -> NoReturn:
    """ApiFault 400 for the first thing that is wrong in a body."""
    first = error.errors()[0]
    # Of a union, pydantic adds which member it tried: only the client's own path is of use to the client.
    path = [str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
    where = ".".join(path[:1] if first["loc"][0] in ("stop", "prompt", "input") else path)
    missing = first["type"] == "missing"
    code = "missing_required_parameter" if missing else "invalid_value"
    raise refusal(f"{where}: {first['msg']}", param=where, code=code) from None


def _check_values(request: ChatRequest | CompletionRequest, *, takes_tools: bool) -> None:
    if request.token_limit == 0:
        raise refusal("max_tokens: must be at least 1", param="max_tokens", code="invalid_value")
    if request.n is not None and request.n > _MOST_CHOICES:
        raise invalid_value("n", f"must be at most {_MOST_CHOICES}")
    if isinstance(request, CompletionRequest):
        _check_prompts(request.prompt)
        return
    if request.response_format is not None:
        check_response_format(request.response_format)
    check_tools(request.tools or [], request.tool_choice)
    _check_messages(request, takes_tools=takes_tools)


def _check_prompts(prompt: str | list[Any]) -> None:
    """One prompt per request: of several, engines count the usage of one."""
    if isinstance(prompt, list) and len(prompt) > 1 and not all(isinstance(item, int) for item in prompt):
        raise refusal("prompt: send one prompt per request", param="prompt", code="unsupported_value")


def _check_messages(request: ChatRequest, *, takes_tools: bool) -> None:
    if request.top_logprobs and not request.logprobs:
        raise refusal("top_logprobs: needs logprobs=true", param="top_logprobs", code="invalid_value")
    for index, message in enumerate(request.messages):
        if not takes_tools and (message.role == "tool" or message.tool_calls):
            fault = f"messages.{index}: this model's engine takes no tool calls"
            raise refusal(fault, param="messages", code="unsupported_value")
        try:
            message.text()
        except ValueError as error:
            raise refusal(f"messages.{index}: {error}", param="messages", code="invalid_value") from None


def with_usage_chunk(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same streaming request, asking for the usage chunk that timing needs."""
    options: dict[str, Any] = body.get("stream_options") or {}
    return {**body, "stream_options": {**options, "include_usage": True}}
