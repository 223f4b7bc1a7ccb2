"""A batch as it is kept and as OpenAI shows it."""

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self, cast

from decant_serve.openai_errors import invalid_value, refusal

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
ENDED: frozenset[BatchStatus] = frozenset({"failed", "completed", "expired", "cancelled"})
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")

_WINDOW = re.compile(r"([1-9]\d{0,5})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_METADATA_KEYS, _KEY_CHARACTERS, _VALUE_CHARACTERS = 16, 64, 512
_PARAMETERS = frozenset(
    {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch; `stamps` holds when it came to each status, in seconds since the epoch.

    `sequence` counts the batches of a folder: it tells apart those of one second.
    """

    id: str
    owner: str | None
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None
    output_expires_in_s: int | None = None
    sequence: int = 0
    status: BatchStatus = "validating"
    stamps: dict[str, int] = field(default_factory=dict[str, int])
    errors: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    model: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    usage: dict[str, Any] | None = None

    @classmethod
    def asked(
        cls, body: dict[str, Any], *, batch_id: str, owner: str | None, now: int, sequence: int = 0
    ) -> Self:
        """The batch that a request body asks for; ApiFault for what it cannot be."""
        for name in body:
            if name not in _PARAMETERS:
                message = f"Unrecognized request argument supplied: {name}"
                raise refusal(message, param=name, code="unknown_parameter")
        endpoint, file_id, window = (
            body.get(name) for name in ("endpoint", "input_file_id", "completion_window")
        )
        if endpoint not in ENDPOINTS:
            raise invalid_value("endpoint", f"must be one of {', '.join(ENDPOINTS)}")
        if not isinstance(file_id, str):
            raise invalid_value("input_file_id", "must be the id of an uploaded file")
        matched = _WINDOW.fullmatch(window) if isinstance(window, str) else None
        if matched is None:
            raise invalid_value("completion_window", "must be a time such as 24h, 90m or 7d")
        return cls(
            id=batch_id,
            owner=owner,
            sequence=sequence,
            endpoint=endpoint,
            input_file_id=file_id,
            completion_window=matched[0],
            created_at=now,
            expires_at=now + int(matched[1]) * _UNIT_S[matched[2]],
            metadata=_metadata(body.get("metadata")),
            output_expires_in_s=_expires_in_s(body.get("output_expires_after")),
        )

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ENDED

    def at(self, status: BatchStatus, now: float, **changes: Any) -> Self:
        """The batch in a new status."""
        return replace(self, status=status, stamps={**self.stamps, f"{status}_at": int(now)}, **changes)

    def to_fields(self) -> dict[str, Any]:
        """What is kept on disk."""
        return asdict(self)

    def to_wire(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        named = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{name}_at": self.stamps.get(f"{name}_at") for name in named},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": self.usage,
            "metadata": self.metadata,
        }


def _metadata(given: Any) -> dict[str, str] | None:
    if given is None:
        return None
    pairs = cast(dict[Any, Any], given) if isinstance(given, dict) else None
    if pairs is None or len(pairs) > _METADATA_KEYS:
        raise invalid_value("metadata", f"must be an object of at most {_METADATA_KEYS} texts")
    for name, value in pairs.items():
        if not isinstance(value, str) or len(name) > _KEY_CHARACTERS or len(value) > _VALUE_CHARACTERS:
            fault = (
                f"names have at most {_KEY_CHARACTERS} characters, values are texts of {_VALUE_CHARACTERS}"
            )
            raise invalid_value("metadata", fault)
    return pairs


def _expires_in_s(given: Any) -> int | None:
    match given:
        case None:
            return None
        case {"anchor": "created_at", "seconds": int(seconds)} if seconds > 0:
            return seconds
        case _:
            raise invalid_value("output_expires_after", "must be {anchor: created_at, seconds: N}")
