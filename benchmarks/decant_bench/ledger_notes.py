"""What a reader must know before comparing two rows: engines, loads, machines, requests that failed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from decant_bench.ledger_rows import LedgerRow
from decant_bench.number_text import duration

_CACHED_WORTH_SAYING = 0.5
_LATE_WORTH_SAYING = 0.1
_LOAD_KEYS = ("arrival", "rate", "clients", "seed", "requests", "data_sha256")
_MACHINE_KEYS = ("cpu", "cores", "gpus")


def notes(rows: Sequence[LedgerRow], *, teacher: str) -> list[str]:
    """One sentence each, most important first."""
    return [
        *_failures(rows),
        *_engines(rows, teacher=teacher),
        *_different({row.stage: row.load for row in rows}, "The load was not the same", _LOAD_KEYS),
        *_different(
            {row.stage: row.hardware for row in rows}, "The machines were not the same", _MACHINE_KEYS
        ),
        *_late(rows),
        *_cached(rows),
        *_reused(rows),
        *_unpriced(rows),
    ]


def _failures(rows: Sequence[LedgerRow]) -> Iterator[str]:
    for row in rows:
        found = row.requests
        kinds = ", ".join(f"{kind} {n}" for kind, n in row.requests.errors.items())
        if found.failed:
            yield f"{row.stage}: {found.failed} of {found.n} requests failed ({kinds}); each counts as wrong."
        if found.bad_rows:
            yield f"{row.stage}: {found.bad_rows} dataset lines never became requests; nothing counts them."
        if found.missing:
            yield f"{row.stage}: lacks {found.missing} requests that others have; quality leaves them out."


def engine_differences(rows: Sequence[LedgerRow], *, teacher: str) -> list[tuple[str, str]]:
    """The pairs that the ledger compares (a stage with its parent and with the teacher) across engines."""
    engines = {row.stage: row.engine for row in rows}
    pairs = [
        (row.stage, other)
        for row in rows
        for other in dict.fromkeys((row.parent, teacher))
        if other is not None
    ]
    return [(stage, other) for stage, other in pairs if engines[stage] != engines[other]]


def _engines(rows: Sequence[LedgerRow], *, teacher: str) -> Iterator[str]:
    pairs = engine_differences(rows, teacher=teacher)
    if not pairs:
        return
    stages: dict[str, list[str]] = {}
    for row in rows:
        stages.setdefault(row.engine or "unknown", []).append(row.stage)
    who = "; ".join(f"{engine}: {', '.join(names)}" for engine, names in stages.items())
    compared = ", ".join(f"{stage} with {other}" for stage, other in pairs)
    yield f"Engines differ ({who}): latency and cost differ by engine too, comparing {compared}."


def _different(records: Mapping[str, Mapping[str, Any]], what: str, keys: Sequence[str]) -> Iterator[str]:
    """One sentence when the stages' records disagree on any of `keys`, with who had what."""
    known = {stage: record for stage, record in records.items() if record}
    differing = [key for key in keys if len({json.dumps(record.get(key)) for record in known.values()}) > 1]
    if not differing:
        return
    stages: dict[str, list[str]] = {}
    for stage, record in known.items():
        said = ", ".join(f"{key} {_plain(record.get(key))}" for key in differing)
        stages.setdefault(said, []).append(stage)
    groups = [f"{said} ({', '.join(names)})" for said, names in stages.items()]
    yield f"{what}: {'; '.join(groups)}."


def _plain(value: Any) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, cast("list[Any]", value))) if isinstance(value, list) else str(value)[:40]


def _late(rows: Sequence[LedgerRow]) -> Iterator[str]:
    for row in rows:
        delay_s = row.load.get("send_delay_s", {}).get("p99")
        latency_s = row.latency["e2e_service_s"]["p50"]
        if delay_s and latency_s and delay_s > _LATE_WORTH_SAYING * latency_s:
            yield (
                f"{row.stage}: 1% of its requests left {duration(delay_s)} late or more, so the client was a"
                " bottleneck; response latency holds that delay, service latency does not."
            )


def _cached(rows: Sequence[LedgerRow]) -> Iterator[str]:
    for row in rows:
        share = row.cached_prompt_share.get("burst")
        if share is not None and share > _CACHED_WORTH_SAYING:
            yield (
                f"{row.stage}: {share:.0%} of the burst's prompt tokens came from the server's cache, since"
                " it repeats the replayed requests; the capacity for new prompts is lower."
            )


def _reused(rows: Sequence[LedgerRow]) -> Iterator[str]:
    for row in rows:
        if row.cost.labels_reused and row.cost.labeling_usd is not None:
            yield (
                f"{row.stage}: {row.cost.labels_reused:,} of its labels were in the store already; the"
                " machine time that they took is not in its labeling cost."
            )


def _unpriced(rows: Sequence[LedgerRow]) -> Iterator[str]:
    unpriced = [row.stage for row in rows if row.cost.serving_usd_per_1000 is None]
    if unpriced:
        names = ", ".join(unpriced)
        yield f"No serving cost for {names}: it needs a price per hour and a capacity, or token prices."
    unprepared = [row.stage for row in rows if row.parent is not None and row.cost.preparation_usd is None]
    if unprepared:
        names = ", ".join(unprepared)
        yield f"No labeling or training cost is stated for {names}: their cost is serving only."
