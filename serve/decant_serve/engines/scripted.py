"""The engine that answers by script: exact delays and answers, for tests and to check a benchmark's ruler."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
from pydantic import Field, ValidationError, model_validator

from decant.config import Config
from decant.errors import ConfigError, EngineError
from decant.golden import Observation
from decant_serve.calls import Features
from decant_serve.engines.local import HOST, is_healthy
from decant_serve.engines.protocol import EngineDescription, EngineSettings, Launch, Upstream

_PARAMETERS = frozenset({"temperature", "top_p", "seed", "max_tokens", "stop"})
FEATURES = Features(chat=_PARAMETERS | {"max_completion_tokens"}, completions=_PARAMETERS, embeddings=True)

Seconds = Annotated[float, Field(ge=0)]


class ScriptedAnswer(Config):
    """One answer. Times count from the moment it is taken up, so that delays do not add up their errors.

    `chunks` are sent one event each, and each counts as one token; the first after `ttft_s`, the others
    `gaps_s` apart (the last gap repeats). `status` other than 200 answers an error after `ttft_s`;
    `end` "cut" closes the connection after the last chunk, "crash" ends the engine's process.
    """

    match: str = Field(default="", description="text that the last message or the prompt must contain")
    chunks: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = Field(default=(), description="reasoning events, sent before the chunks")
    ttft_s: Seconds = 0.0
    gaps_s: tuple[Seconds, ...] = (0.0,)
    prompt_tokens: int = Field(default=1, ge=0)
    finish_reason: str = "stop"
    status: int = Field(default=200, ge=200, le=599)
    headers: dict[str, str] = Field(default={}, description="headers of an error answer")
    message: str = Field(default="the script says so", description="the error's message")
    end: Literal["done", "cut", "crash"] = "done"

    @model_validator(mode="after")
    def _has_gaps(self) -> "ScriptedAnswer":
        if not self.gaps_s:
            raise ValueError("gaps_s needs at least one number")
        return self

    def within(self, limit: int | None) -> "ScriptedAnswer":
        """The same answer, cut after `limit` tokens."""
        if limit is None or len(self.reasoning) + len(self.chunks) <= limit:
            return self
        left = max(limit - len(self.reasoning), 0)
        return self.with_changes(
            reasoning=self.reasoning[:limit], chunks=self.chunks[:left], finish_reason="length", end="done"
        )

    def send_times_s(self) -> list[float]:
        """When each event goes out: reasoning first, then the chunks."""
        times = [self.ttft_s]
        for index in range(len(self.reasoning) + len(self.chunks) - 1):
            times.append(times[-1] + self.gaps_s[min(index, len(self.gaps_s) - 1)])
        return times


class Script(Config):
    """The answers, tried in order; the last should match everything."""

    answers: tuple[ScriptedAnswer, ...] = Field(min_length=1)
    parallel: int | None = Field(default=None, ge=1, description="requests answered at once; the others wait")

    def answer_to(self, text: str) -> ScriptedAnswer | None:
        """The first answer whose `match` occurs in the text."""
        return next((answer for answer in self.answers if answer.match in text), None)


def read_script(path: Path) -> Script:
    """Reads a script; ConfigError says what is wrong with it."""
    try:
        return Script.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where or 'script'}: {first['msg']}") from None


def build(settings: EngineSettings) -> "Scripted":
    """The engine for a script file, which is checked here."""
    assert settings.target.path is not None
    read_script(settings.target.path)
    return Scripted(settings)


class Scripted:
    """Answers over the same sockets and in the same shapes as a real engine."""

    def __init__(self, settings: EngineSettings) -> None:
        self._socket = settings.socket
        self._arguments = {
            "script": str(settings.target.path),
            "model": settings.target.name,
            "socket": str(settings.socket),
        }

    def describe(self) -> EngineDescription:
        """A process with a script."""
        return EngineDescription("scripted", Upstream(HOST, self._socket))

    def launch(self) -> Launch:
        """A process of its own, like every local engine."""
        return Launch(
            (sys.executable, "-m", "decant_serve.engines.scripted_child", json.dumps(self._arguments))
        )

    async def probe(self, client: httpx.AsyncClient) -> Features | None:
        """It honours the token limit; the other sampling parameters have no bearing on a script."""
        return FEATURES if await is_healthy(client) else None

    async def observe(
        self, client: httpx.AsyncClient, messages: Sequence[Mapping[str, str]], max_tokens: int
    ) -> Observation:
        """It has no model."""
        raise EngineError("the scripted engine has no model whose golden prompts could be checked")

    def prepare(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Taken as it is."""
        return body
