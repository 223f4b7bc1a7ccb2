"""The comparison as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from peers.comparison import ErrorRow, RateStep
from peers.truth import Truth

_HEAD = (
    "| streams | client | n | TTFT p50 | TTFT p99 | gap p50 | gap p99 | mean gap p50 | mean gap p99"
    " | engine p50 / p99 |"
)
_RULE = (
    "A rate holds when all requests complete, 99 % of it is offered by the client's own start times, and"
    " the p99 of the time to first token is within a tenth of the truth. The same rule for all."
)


def markdown(
    rows: Sequence[ErrorRow],
    best: Mapping[str, float | None],
    steps: Sequence[RateStep],
    *,
    truth: Truth,
    provenance: Mapping[str, Any],
) -> str:
    """Both tables, what they mean, and where they were measured."""
    machine = provenance["hardware"]
    said = (
        f"Scripted: first token {1000 * truth.ttft_s:g} ms, gap {1000 * truth.gap_s:g} ms, {truth.tokens}"
        " tokens. One engine process on loopback, the clients one after the other; percentiles of what each"
        " recorded minus the truth, in ms, without each stream's first request. In bold: nearest to zero."
        " Engine: how late it was itself with its events. guidellm keeps only the mean gap of a request."
    )
    lines = ["# Benchmark clients on known delays", "", said, "", *_error_table(rows), ""]
    lines += ["## The highest rate at which a client holds", "", *_rate_table(best, steps), ""]
    lines += [
        _RULE,
        "",
        f"- machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        f"- commit {provenance['commit']}, command `{provenance['command']}`",
        f"- clients: {', '.join(f'{name} {version}' for name, version in provenance['clients'].items())}",
    ]
    return "\n".join(lines) + "\n"


def _error_table(rows: Sequence[ErrorRow]) -> list[str]:
    lines = [_HEAD, "|---:|---|---:|" + "---:|" * 7]
    for row in rows:
        same = [other.errors_s for other in rows if other.streams == row.streams]
        cells = [_cell(value, [other[place] for other in same]) for place, value in enumerate(row.errors_s)]
        late = f"{_ms(row.engine.p50_s)} / {_ms(row.engine.p99_s)}"
        lines.append(f"| {row.streams} | {row.client} | {row.n} | {' | '.join(cells)} | {late} |")
    return lines


def _rate_table(best: Mapping[str, float | None], steps: Sequence[RateStep]) -> list[str]:
    lines = ["| client | highest rate | what ended it |", "|---|---:|---|"]
    for name, rate in best.items():
        failed = [step for step in steps if step.client == name and step.why_not]
        first = min(failed, key=lambda step: step.asked, default=None)
        ended = "the search's limit" if first is None else f"at {first.asked:.0f}/s: {first.why_not}"
        shown = "none" if rate is None else f"{rate:.0f}/s"
        lines.append(f"| {name} | {shown} | {ended} |")
    return lines


def _cell(value: float | None, column: Sequence[float | None]) -> str:
    if value is None:
        return "-"
    text = f"{1000 * value:+.3f}"
    least = min(abs(other) for other in column if other is not None)
    return f"**{text}**" if abs(value) <= least else text


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.3f}"
