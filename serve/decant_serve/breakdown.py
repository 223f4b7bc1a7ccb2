"""Where one request's time went: stages that sum to its total, and what its engine says of its own stage."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_ENGINE_WORDS: Mapping[str, tuple[str, ...]] = {
    "queue": ("queue_ms", "queue_time_ms"),
    "prefill": ("prompt_ms", "time_to_first_token_ms"),
    "decode": ("predicted_ms", "generation_time_ms"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Seconds. read + queue + engine + send = total; a stage that was not reached is None.

    `read_s`: the body arrives and is checked. `queue_s`: the gateway's own queue. `engine_s`: from there to
    the engine's last byte. `send_s`: what was left to pass on. Of `engine_s` the engine itself explains
    `engine_queue_s`, `prefill_s` and `decode_s`; `residual_s` is what nobody explains (transport, waits that
    the engine does not report), and None for an engine that reports nothing.
    """

    total_s: float
    read_s: float
    queue_s: float | None
    engine_s: float | None
    send_s: float | None
    engine_queue_s: float | None
    prefill_s: float | None
    decode_s: float | None
    residual_s: float | None

    def to_dict(self) -> dict[str, float | None]:
        """The fields as JSON values."""
        return asdict(self)

    def server_timing(self) -> str:
        """The `Server-Timing` header of what is known so far, in milliseconds."""
        known = {
            "read": self.read_s,
            "queue": self.queue_s,
            "engine": self.engine_s,
            "prefill": self.prefill_s,
            "decode": self.decode_s,
            "total": self.total_s,
        }
        return ", ".join(f"{name};dur={at_s * 1000:.3f}" for name, at_s in known.items() if at_s is not None)


def break_down(
    *,
    total_s: float,
    read_s: float | None,
    admitted_s: float | None,
    engine_ended_s: float | None,
    engine: Mapping[str, Any] | None,
) -> Breakdown:
    """Differences of marks that count from arrival; a stage that was not left takes the rest of the total.

    `engine` holds the engine's numbers in milliseconds: `queue_ms`, `prompt_ms`, `predicted_ms` in
    llama.cpp's words, or vLLM's `queue_time_ms`, `time_to_first_token_ms` (without its queue) and
    `generation_time_ms`.
    """
    ends = (read_s, admitted_s, engine_ended_s, total_s)
    stages: list[float | None] = []
    began_s: float | None = 0.0
    for end_s in ends:
        stages.append(None if began_s is None else (total_s if end_s is None else end_s) - began_s)
        began_s = end_s
    read, queue, in_engine, send = stages
    assert read is not None, "the first stage always begins"
    told = {stage: _seconds(engine, names) for stage, names in _ENGINE_WORDS.items()}
    explained = [value for value in told.values() if value is not None]
    return Breakdown(
        total_s=total_s,
        read_s=read,
        queue_s=queue,
        engine_s=in_engine,
        send_s=send,
        engine_queue_s=told["queue"],
        prefill_s=told["prefill"],
        decode_s=told["decode"],
        residual_s=in_engine - sum(explained) if in_engine is not None and explained else None,
    )


def engine_queue_s(engine: Mapping[str, Any] | None) -> float | None:
    """How long the request waited within the engine, where it says so."""
    return _seconds(engine, _ENGINE_WORDS["queue"])


def _seconds(engine: Mapping[str, Any] | None, names: tuple[str, ...]) -> float | None:
    if engine:
        for name in names:
            value = engine.get(name)
            if isinstance(value, int | float):
                return value / 1000
    return None
