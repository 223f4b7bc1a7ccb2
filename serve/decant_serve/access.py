"""Who may ask: API keys, of which only hashes are kept, and what each may use."""

import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from starlette.datastructures import Headers

from decant.config import Config, load_config
from decant.errors import ConfigError
from decant_serve.openai_errors import unauthorized
from decant_serve.rate_limit import RateLimit

_SHORTEST_KEY = 16


class KeyConfig(Config):
    """One API key, as its hash, and its limits."""

    name: str = Field(min_length=1, description="what logs and timing records call it")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="hex SHA-256 of the key")
    requests_per_minute: int | None = Field(default=None, ge=1, description="no limit if not set")
    tokens_per_minute: int | None = Field(default=None, ge=1, description="no limit if not set")


class KeysFile(Config):
    """The file that `--api-keys` names."""

    keys: tuple[KeyConfig, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Key:
    """One key that is let in."""

    name: str
    digest: bytes
    limit: RateLimit


class Access:
    """The keys of one gateway; without any, everybody is let in."""

    def __init__(self, keys: tuple[Key, ...] = ()) -> None:
        self._keys = keys
        self.refused = 0

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._keys

    def key_of(self, headers: Headers) -> Key | None:
        """The key that a request carries, None where none is needed; ApiFault 401 otherwise."""
        if self.is_open:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = _digest(given.strip() if scheme.lower() == "bearer" else "")
        # Every key is compared, in constant time: how long it takes says nothing about any of them.
        matches = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not matches:
            self.refused += 1
            raise unauthorized()
        return matches[0]


def load_access(file: Path | None, *, variable: str | None) -> Access:
    """The keys of a TOML file of hashes and of an environment variable of keys, separated by commas.

    ConfigError for what is no such file, for an empty variable, short keys, and names or keys given twice.
    """
    configs = list(load_config(KeysFile, file=file).keys) if file else []
    configs += _from_environment(variable) if variable else []
    for what, values in (("name", [c.name for c in configs]), ("key", [c.sha256 for c in configs])):
        if len(set(values)) < len(values):
            raise ConfigError(f"API keys: the same {what} is given twice")
    return Access(tuple(_key(config) for config in configs))


def _from_environment(variable: str) -> list[KeyConfig]:
    given = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
    if not given:
        raise ConfigError(f"the environment variable {variable} is empty; put the API keys there")
    if any(len(key) < _SHORTEST_KEY for key in given):
        raise ConfigError(f"{variable}: an API key needs at least {_SHORTEST_KEY} characters")
    return [
        KeyConfig(name=f"{variable}-{number}", sha256=_digest(key).hex())
        for number, key in enumerate(given, 1)
    ]


def _key(config: KeyConfig) -> Key:
    limit = RateLimit(
        requests_per_minute=config.requests_per_minute, tokens_per_minute=config.tokens_per_minute
    )
    return Key(config.name, bytes.fromhex(config.sha256), limit)


def _digest(key: str) -> bytes:
    # Keys are long and random, so one round is enough: there is nothing to guess.
    return hashlib.sha256(key.encode()).digest()
