"""`decant waterfall ID`: where one request's time went, as bars, down to what each rank did."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast
from urllib.parse import quote

import httpx
from pydantic import Field

from decant.config import Config
from decant.errors import ConfigError, DataError, EndpointError
from decant.wire import parse_error

_BAR = 44
_LIMIT_S = 10.0
_EIGHTHS = " ▏▎▍▌▋▊▉"
_RANK_MARKS = (("compute_s", "█"), ("wait_s", "░"), ("comm_s", "▒"))


class WaterfallConfig(Config):
    """Which request, and where its timing is."""

    positional: ClassVar[tuple[str, ...]] = ("request_id",)

    request_id: str = Field(default=..., description="the x-request-id of its answer")
    base_url: str = Field(
        default="http://127.0.0.1:8000/v1", description="the server that answered, with its /v1"
    )
    api_key_env: str | None = Field(default=None, description="environment variable with the key that asked")
    log: Path | None = Field(default=None, description="a timing log (JSONL) to look in instead")


CONFIG = WaterfallConfig


def run(config: WaterfallConfig) -> None:
    """Prints it; DecantError where there is no such request."""
    record = _from_log(config.log, config.request_id) if config.log else _from_server(config)
    print("\n".join(waterfall(record)))


def waterfall(record: Mapping[str, Any]) -> list[str]:
    """The lines for one timing record, as `/v1/requests/ID/timing` gives it."""
    shards: Mapping[str, Any] | None = record.get("shards")
    stages = list(_fine(shards["latency"]) if shards else _coarse(record["breakdown"]))
    total_s = sum(seconds for _, seconds in stages)
    lines = [_title(record, total_s)]
    began_s = 0.0
    for name, seconds in stages:
        lines.append(f"  {name:<14} {_ms(seconds):>10} ms  {_bar(began_s, seconds, total_s)}".rstrip())
        began_s += seconds
    return [*lines, *_rank_lines(shards)] if shards else lines


def _title(record: Mapping[str, Any], total_s: float) -> str:
    tokens = " and ".join(
        f"{record[name]} {word}"
        for name, word in (("prompt_tokens", "tokens in"), ("completion_tokens", "out"))
        if record.get(name) is not None
    )
    outcome = record.get("error_kind") or record.get("finish_reason") or record["status"]
    about = [
        f"{record.get('model') or '?'} ({record.get('engine_name') or 'no engine'})",
        tokens,
        str(outcome),
    ]
    return f"{record['request_id']}: {total_s * 1e3:.2f} ms; {', '.join(part for part in about if part)}"


def _fine(latency: Mapping[str, float | None]) -> Iterator[tuple[str, float]]:
    """The ledger over engine steps, in order; what lies between its steps is drawn after them."""
    words = {
        "gateway_s": "gateway",
        "frontend_s": "front end",
        "engine_queue_s": "engine queue",
        "prefill_s": "prefill",
        "decode_s": "decode",
        "others_s": "others' steps",
        "gaps_s": "between steps",
        "output_s": "output",
        "residual_s": "unexplained",
    }
    for name, word in words.items():
        seconds = latency[name]
        if seconds is not None:
            yield word, seconds


def _coarse(breakdown: Mapping[str, float | None]) -> Iterator[tuple[str, float]]:
    """The gateway's stages; of the engine's, what the engine itself explains."""
    for name, word in (("read_s", "read"), ("queue_s", "queue")):
        yield word, breakdown[name] or 0.0
    if breakdown["residual_s"] is None:
        yield "engine", breakdown["engine_s"] or 0.0
    else:
        for name, word in (
            ("engine_queue_s", "engine queue"),
            ("prefill_s", "prefill"),
            ("decode_s", "decode"),
        ):
            yield word, breakdown[name] or 0.0
        yield "unexplained", breakdown["residual_s"]
    yield "send", breakdown["send_s"] or 0.0


def _bar(began_s: float, seconds: float, total_s: float) -> str:
    """A bar from where the stage begins; the first and last cell are as full as they are long."""
    if total_s <= 0 or seconds <= 0:
        return ""
    cells = _BAR / total_s
    begin = min(int(began_s * cells), _BAR - 1)
    eighths = max(1, round(seconds * cells * 8))
    return " " * begin + "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _ms(seconds: float) -> str:
    """Milliseconds, and never a negative nothing."""
    return f"{round(seconds * 1e3, 2) + 0.0:.2f}"


def _rank_lines(shards: Mapping[str, Any]) -> Iterator[str]:
    steps, prefill = shards["steps"], shards["prefill_steps"]
    counted = f"{steps} engine steps ({prefill} prefill), timed by {shards['method']}"
    yield f"  {counted}; this request's share of the engine: {shards['cost_s'] * 1e3:.2f} ms"
    yield "  per rank: █ computing, ░ waiting for another rank, ▒ communicating"
    slowest = shards["slowest_step"]
    told = f"slowest step, number {slowest['step']}"
    phases = [("prefill", shards["prefill"]), ("decode", shards["decode"]), (told, slowest["ranks"])]
    for phase, ranks in phases:
        longest_s = max((_forward_s(rank) for rank in ranks), default=0.0)
        if longest_s <= 0:
            continue
        yield f"  {phase}"
        for rank in ranks:
            yield f"    rank {rank['rank']:<3} {_rank_bar(rank, longest_s):<{_BAR}}  {_rank_words(rank)}"
    yield from _straggler(shards)


def _rank_bar(rank: Mapping[str, float], longest_s: float) -> str:
    ends: list[int] = []
    so_far_s = 0.0
    for name, _ in _RANK_MARKS:
        so_far_s += rank[name]
        ends.append(round(so_far_s / longest_s * _BAR))
    begins = [0, *ends]
    return "".join(
        mark * (end - begin) for (_, mark), begin, end in zip(_RANK_MARKS, begins, ends, strict=False)
    )


def _rank_words(rank: Mapping[str, float]) -> str:
    spent = (f"{word} {rank[name] * 1e3:.2f}" for name, word in zip(_NAMES, _WORDS, strict=True))
    return ", ".join(spent) + " ms"


_NAMES = ("compute_s", "wait_s", "comm_s", "held_up_s")
_WORDS = ("computes", "waits", "communicates", "held others up")


def _forward_s(rank: Mapping[str, float]) -> float:
    return sum(rank[name] for name, _ in _RANK_MARKS)


def _straggler(shards: Mapping[str, Any]) -> Iterator[str]:
    """Who made the others wait, where that was most of a wait and mattered."""
    ranks: list[Mapping[str, float]] = [*shards["prefill"], *shards["decode"]]
    held: dict[float, float] = {}
    for rank in ranks:
        held[rank["rank"]] = held.get(rank["rank"], 0.0) + rank["held_up_s"]
    if len(held) < 2:
        return
    worst = max(held, key=lambda rank: held[rank])
    waited_ms = sum(held.values()) * 1e3
    # Below this the ranks are as even as their work lets them be.
    if held[worst] > 0.6 * sum(held.values()) and sum(held.values()) > 0.05 * _spent_s(shards):
        due_ms = held[worst] * 1e3
        yield f"  rank {worst} is the straggler: {due_ms:.2f} of {waited_ms:.2f} ms of waiting are due to it"
    else:
        yield f"  no straggler: {waited_ms:.2f} ms of waiting, shared by the ranks"


def _spent_s(shards: Mapping[str, Any]) -> float:
    """The longest forward of any rank, over all steps."""
    ranks = (*shards["prefill"], *shards["decode"])
    by_rank: dict[float, float] = {}
    for rank in ranks:
        by_rank[rank["rank"]] = by_rank.get(rank["rank"], 0.0) + _forward_s(rank)
    return max(by_rank.values(), default=0.0)


def _from_log(log: Path, request_id: str) -> Mapping[str, Any]:
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{log}: cannot read the timing log ({error.strerror})") from None
    for number, line in reversed(list(enumerate(lines, start=1))):
        try:
            record: Any = json.loads(line)
        except ValueError:
            raise DataError(f"{log}:{number}: not a timing record") from None
        if isinstance(record, dict) and cast("dict[str, Any]", record).get("request_id") == request_id:
            return cast("dict[str, Any]", record)
    raise DataError(f"{log}: has no request {request_id}")


def _from_server(config: WaterfallConfig) -> Mapping[str, Any]:
    key = os.environ.get(config.api_key_env, "") if config.api_key_env else ""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"{config.base_url.rstrip('/')}/requests/{quote(config.request_id)}/timing"
    try:
        response = httpx.get(url, headers=headers, timeout=_LIMIT_S, trust_env=False)
        body: Any = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise EndpointError(f"{url}: no answer that can be read ({type(error).__name__})") from None
    if response.status_code != 200:
        error = parse_error(body)
        told = f" ({error.message})" if error else ""
        raise EndpointError(f"{url}: answered {response.status_code}{told}")
    return cast("dict[str, Any]", body)
