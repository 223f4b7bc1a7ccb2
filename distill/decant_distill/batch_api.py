"""The few calls of a provider's Files and Batches APIs that a labeling job makes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import httpx

from decant.api_error import ADVICE
from decant.client import Backoff, is_loopback
from decant.errors import EndpointError
from decant.wire import parse_error

_TRIES = 6
_TIMEOUT = httpx.Timeout(60.0, read=600.0, write=600.0)
_PASSING = frozenset({408, 409, 429, 500, 502, 503, 504})
_PAGE = 100


class NotSure(EndpointError):
    """A call that changes something broke off, and whether it took effect is not known."""


class BatchApi:
    """One endpoint; an async context manager. What only reads is tried again by itself."""

    def __init__(self, base_url: str, *, api_key: str | None, backoff: Backoff | None = None) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(
            base_url=base_url.rstrip("/") + "/",
            headers=headers,
            timeout=_TIMEOUT,
            follow_redirects=True,
            trust_env=not is_loopback(httpx.URL(base_url).host),
        )
        self._backoff = backoff or Backoff()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def upload(self, path: Path) -> str:
        """Sends a batch's input and returns its id; one that is sent twice costs nothing."""

        async def send() -> httpx.Response:
            with path.open("rb") as file:
                upload = {"file": (path.name, file, "application/jsonl")}
                return await self._client.post("files", files=upload, data={"purpose": "batch"})

        for tries in range(1, _TRIES + 1):
            try:
                return str(_object(await send())["id"])
            except (httpx.TransportError, _Passing) as error:
                await self._pause(error, tries)
        raise AssertionError("the last try raises")

    async def create(self, file_id: str, *, endpoint: str, metadata: dict[str, str]) -> dict[str, Any]:
        """Starts a batch. NotSure when nobody knows whether it did: look for its metadata first."""
        body = {
            "input_file_id": file_id,
            "endpoint": endpoint,
            "completion_window": "24h",
            "metadata": metadata,
        }
        try:
            return _object(await self._client.post("batches", json=body))
        except (httpx.TransportError, _Passing) as error:
            raise NotSure(f"{self._client.base_url}batches: {_words(error)}") from None

    async def batches(self) -> AsyncIterator[dict[str, Any]]:
        """Every batch that the key has, the newest first."""
        after: dict[str, str] = {}
        while True:
            page = _object(await self._get("batches", params={"limit": _PAGE, **after}))
            for batch in page["data"]:
                yield batch
            if not page.get("has_more") or not page["data"]:
                return
            after = {"after": page["data"][-1]["id"]}

    async def batch(self, batch_id: str) -> dict[str, Any]:
        """One batch as it stands."""
        return _object(await self._get(f"batches/{batch_id}"))

    async def download(self, file_id: str, path: Path) -> None:
        """Writes a file's content to `path`."""
        for tries in range(1, _TRIES + 1):
            try:
                async with self._client.stream("GET", f"files/{file_id}/content") as response:
                    if response.status_code != 200:
                        await response.aread()
                        _object(response)
                    with path.open("wb") as file:
                        async for part in response.aiter_bytes():
                            file.write(part)
                return
            except (httpx.TransportError, _Passing) as error:
                await self._pause(error, tries)

    async def _get(self, url: str, params: dict[str, Any] | None = None) -> httpx.Response:
        for tries in range(1, _TRIES + 1):
            try:
                response = await self._client.get(url, params=params)
                _object(response)
                return response
            except (httpx.TransportError, _Passing) as error:
                await self._pause(error, tries)
        raise AssertionError("the last try raises")

    async def _pause(self, error: Exception, tries: int) -> None:
        told = error.retry_after_s if isinstance(error, _Passing) else None
        delay_s = self._backoff.delay_s(tries, told)
        if tries == _TRIES or delay_s is None:
            raise EndpointError(f"{self._client.base_url}: {_words(error)}; {ADVICE['connect']}") from None
        await asyncio.sleep(delay_s)


class _Passing(Exception):
    """A refusal that may pass."""

    def __init__(self, words: str, retry_after_s: float | None) -> None:
        super().__init__(words)
        self.retry_after_s = retry_after_s


def _object(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; _Passing or EndpointError for a refusal."""
    try:
        body: Any = response.json()
    except ValueError:
        body = None
    if response.is_success and isinstance(body, dict):
        return cast(dict[str, Any], body)
    found = parse_error(body)
    said = found.message if found else response.text[:300]
    words = f"{response.request.url}: HTTP {response.status_code}: {said}"
    if response.status_code in _PASSING:
        told = response.headers.get("retry-after", "")
        raise _Passing(words, float(told) if told.isdecimal() else None)
    if response.is_success:
        raise EndpointError(f"{response.request.url}: {ADVICE['bad_response']}")
    raise EndpointError(f"{words}; {_advice(response.status_code)}")


def _advice(status: int) -> str:
    kinds = {401: ADVICE["auth"], 403: ADVICE["auth"], 404: "the endpoint needs /v1/files and /v1/batches"}
    return kinds.get(status, "see the endpoint's documentation of its Batch API")


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
