"""A remote OpenAI-compatible endpoint as an engine: no process here, the key from the environment."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from decant.errors import ConfigError, EngineError
from decant.golden import Observation
from decant_serve.calls import Features
from decant_serve.engines.protocol import EngineDescription, EngineSettings, Launch, Upstream

FEATURES = Features(chat=frozenset(), completions=frozenset(), takes_anything=True, usage_chunk=False)


def build(settings: EngineSettings) -> "OpenAI":
    """The engine for a remote URL; ConfigError without one."""
    if settings.remote_url is None:
        raise ConfigError("the openai engine needs --base-url, the remote endpoint with its /v1")
    return OpenAI(settings, settings.remote_url)


class OpenAI:
    """Passes requests on under the remote model's name; the endpoint judges their parameters itself."""

    def __init__(self, settings: EngineSettings, remote_url: str) -> None:
        # Our routes carry the /v1 that clients put into their base URL.
        self._base_url = remote_url.rstrip("/").removesuffix("/v1")
        self._model = settings.target.name
        self._headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}

    def describe(self) -> EngineDescription:
        """Where it passes requests to; never the key."""
        return EngineDescription(
            name="openai",
            upstream=Upstream(self._base_url, None, headers=self._headers),
            details={"remote": self._base_url, "remote_model": self._model},
        )

    def launch(self) -> Launch | None:
        """It runs elsewhere."""
        return None

    async def probe(self, client: httpx.AsyncClient) -> Features | None:
        """Whether anything answers at all: what it says to /v1/models is between it and the key."""
        try:
            await client.get("/v1/models", timeout=10.0)
        except httpx.HTTPError:
            return None
        return FEATURES

    async def observe(
        self, client: httpx.AsyncClient, messages: Sequence[Mapping[str, str]], max_tokens: int
    ) -> Observation:
        """A remote endpoint shows neither its template nor its token ids."""
        raise EngineError("a remote endpoint does not show the token ids that golden prompts are checked by")

    def prepare(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same request under the remote model's name."""
        return body if body["model"] == self._model else {**body, "model": self._model}
