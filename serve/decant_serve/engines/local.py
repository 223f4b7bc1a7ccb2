"""Asking a local engine: a request over its socket, and its failures as EngineError."""

from collections.abc import Mapping
from typing import Any

import httpx

from decant.errors import EngineError

HOST = "http://engine"
_LIMIT_S = 120.0


async def ask(client: httpx.AsyncClient, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object that the engine answers: POST with a body, GET without."""
    try:
        if body is None:
            response = await client.get(path, timeout=_LIMIT_S)
        else:
            response = await client.post(path, json=dict(body), timeout=_LIMIT_S)
        response.raise_for_status()
        answer = response.json()
    except httpx.HTTPStatusError as error:
        raise EngineError(
            f"{path}: the engine answered {error.response.status_code}: {error.response.text[:300]}"
        ) from None
    except (httpx.HTTPError, ValueError) as error:
        raise EngineError(f"{path}: the engine did not answer ({type(error).__name__}: {error})") from None
    if not isinstance(answer, dict):
        raise EngineError(f"{path}: the engine answered something else than an object")
    return answer


async def is_healthy(client: httpx.AsyncClient) -> bool:
    """Whether GET /health answers 200."""
    try:
        return (await client.get("/health", timeout=2.0)).status_code == 200
    except httpx.HTTPError:
        return False
