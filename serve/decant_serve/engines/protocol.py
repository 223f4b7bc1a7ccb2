"""What the gateway needs of an engine, and the table of the engines there are."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx

from decant.golden import Observation
from decant_serve.calls import Features
from decant_serve.shards.collector import ShardSource
from decant_serve.target import Target

ENGINES: Mapping[str, str] = {
    "llamacpp": "decant_serve.engines.llamacpp:build",
    "transformers": "decant_serve.engines.transformers:build",
    "vllm": "decant_serve.engines.vllm:build",
    "openai": "decant_serve.engines.openai:build",
    "scripted": "decant_serve.engines.scripted:build",
}
# A connection is closed by who would use it next, the gateway: a request that crosses the engine's closing of
# it, as one does when the engine's process was kept from its core for a while, is lost.
GATEWAY_KEEPS_IDLE_S = 30
ENGINE_KEEPS_IDLE_S = 75

Pooling = Literal["off", "model", "mean", "last", "cls"]
"""How token states become one embedding; "model" is as the model file says, "off" gives none."""

ShardTimingMode = Literal["on", "off", "eager"]
"""Whether an engine's ranks are timed; "eager" also splits a GPU's steps, which then run without graphs."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is asked to run. `context` counts tokens per request, `parallel` requests at once.

    A local engine listens on the Unix socket `socket`, which no other user can reach. `python` is the
    interpreter of another environment, `shard_timing` whether ranks are timed, for an engine that has them.
    """

    target: Target
    socket: Path
    threads: int
    context: int
    parallel: int
    tensor_parallel_size: int = 1
    python: Path | None = None
    shard_timing: ShardTimingMode = "on"
    remote_url: str | None = None
    pooling: Pooling = "off"
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Launch:
    """A child process: its command, and what is added to the environment."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where an engine answers. `base_url` has no /v1; `socket` is None for an address on the network.

    `keeps_connections` is False for a server that closes a connection after a streamed answer: reusing one
    ends in a reset.
    """

    base_url: str
    socket: Path | None
    keeps_connections: bool = True
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)


@dataclass(frozen=True, slots=True)
class EngineDescription:
    """An engine in words: `details` goes into the model page as it is.

    `shards` says where its ranks write what they did, for an engine that has ranks.
    """

    name: str
    upstream: Upstream
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    shards: ShardSource | None = None


class Engine(Protocol):
    """One way to run a model. The supervisor, not the engine, holds the process that `launch` names."""

    def describe(self) -> EngineDescription:
        """What it is and where it answers."""
        ...

    def launch(self) -> Launch | None:
        """How its process is started; None when it runs elsewhere."""
        ...

    async def probe(self, client: httpx.AsyncClient) -> Features | None:
        """What it honours with the model that it loaded; None while it does not answer requests."""
        ...

    async def observe(
        self, client: httpx.AsyncClient, messages: Sequence[Mapping[str, str]], max_tokens: int
    ) -> Observation:
        """How it renders, tokenizes and greedily answers one chat; EngineError when it cannot tell."""
        ...

    def prepare(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """A checked request as this engine wants it; the same object when it wants it unchanged."""
        ...


def build_engine(name: str, settings: EngineSettings) -> Engine:
    """The engine of that name, ready to be launched."""
    module, _, factory = ENGINES[name].partition(":")
    return getattr(importlib.import_module(module), factory)(settings)
