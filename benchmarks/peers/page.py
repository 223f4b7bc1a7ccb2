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
    "A rate holds when all requests complete, 99 % of it is offered by the client's own start times, and the"
    " p99 of the time to first token is within 10 ms of the true one. The same rule for all."
)


def markdown(
    rows: Sequence[ErrorRow],
    best: Mapping[str, float | None],
    steps: Sequence[RateStep],
    *,
    failures: Sequence[str],
    truth: Truth,
    provenance: Mapping[str, Any],
) -> str:
    """Both tables, what they mean, and where they were measured."""
    machine = provenance["hardware"]
    said = (
        f"Scripted: first token {1000 * truth.ttft_s:g} ms, gap {1000 * truth.gap_s:g} ms, {truth.tokens}"
        " tokens. One engine process on loopback, the clients one after the other. Each percentile of what a"
        " client recorded minus the true one, in ms, without each stream's first request; true is what the"
        " engine stamped, from the request's arrival by the kernel to each token's send. In bold: nearest to"
        " zero."
        " Engine: how late it was itself with its tokens. guidellm keeps only the mean gap of a request."
    )
    lines = ["# Benchmark clients on known delays", "", said, "", *_error_table(rows), ""]
    lines += ["## The highest rate at which a client holds", "", *_rate_table(best, steps), ""]
    lines += [_RULE, "", *(f"- not got through: {failure}" for failure in failures)]
    lines += [
        f"- machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        f"- commit {provenance['commit']}, command `{provenance['command']}`",
        f"- clients: {', '.join(f'{name} {version}' for name, version in provenance['clients'].items())}",
    ]
    return "\n".join(lines) + "\n"


def error_text(row: ErrorRow) -> str:
    """A row in one line, as it comes."""
    ttft, gap = (row.ttft_p50_s, row.ttft_p99_s), (row.mean_gap_p50_s, row.mean_gap_p99_s)
    shown = ", ".join(
        f"{name} {1000 * p50:+.3f} / {1000 * p99:+.3f}"
        for name, (p50, p99) in (("ttft", ttft), ("mean gap", gap))
    )
    return f"peers: {row.streams:>4} streams, {row.client}: p50 / p99 off by, in ms: {shown}\n"


def rate_text(step: RateStep) -> str:
    """A step in one line, as it comes."""
    return f"peers: {step.asked:>6.0f}/s, {step.client}: {step.why_not or 'holds'}\n"


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
