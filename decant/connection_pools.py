"""Connections of an httpx client in pools of a few: httpx walks through a whole pool for every request."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

_PER_POOL = 8


@dataclass(slots=True)
class _Pool:
    client: httpx.AsyncClient
    in_use: int = 0


@dataclass(slots=True)
class ConnectionPools:
    """As many pools as are in use at once; one pool where the connections are bounded by `most`."""

    build: Callable[[httpx.Limits], httpx.AsyncClient]
    most: int | None = None
    _pools: list[_Pool] = field(default_factory=list[_Pool])

    @contextmanager
    def client(self) -> Generator[httpx.AsyncClient]:
        """A client for one request, until its response is closed."""
        pool = self._chosen()
        pool.in_use += 1
        try:
            yield pool.client
        finally:
            pool.in_use -= 1

    async def aclose(self) -> None:
        """Closes all connections."""
        for pool in self._pools:
            await pool.client.aclose()

    def _chosen(self) -> _Pool:
        for pool in self._pools:
            if pool.in_use < _PER_POOL or self.most is not None:
                return pool
        self._pools.append(_Pool(self.build(httpx.Limits(max_connections=self.most))))
        return self._pools[-1]
