"""A run in a few lines of text, for the terminal and for logs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from decant_bench import number_text as words
from decant_bench.bench_result import BenchResult

NAMES: Mapping[str, str] = {
    "ttft_response_s": "first token, from due",
    "ttft_service_s": "first token, from sent",
    "e2e_response_s": "end to end, from due",
    "e2e_service_s": "end to end, from sent",
    "tpot_s": "per further token",
    "itl_s": "between tokens",
    "chunk_gap_s": "between chunks",
}
SHOWN = ("p50", "p90", "p95", "p99", "p99.9")


def result_text(result: BenchResult) -> str:
    """The run: what came of the requests, the percentiles in ms with their intervals, and what to doubt."""
    return "\n".join(_lines(result))


def shown_measures(result: BenchResult) -> list[str]:
    """The measures worth a row: those with values, and a closed loop's latency once, for nothing was due."""
    closed = result.load["clients"] is not None
    hidden = {"ttft_response_s", "e2e_response_s"} if closed else set[str]()
    if result.latency["itl_s"]["n"] == result.latency["chunk_gap_s"]["n"]:
        hidden.add("chunk_gap_s")
    return [name for name in NAMES if result.latency[name]["n"] and name not in hidden]


def percentile_text(found: Mapping[str, Any]) -> str:
    """`12.3 [11.9, 12.8]` in ms; why not, where the sample is too small."""
    if found["value"] is None:
        return f"n < {found['needs']}"
    low, high = words.milliseconds(found["low"]), words.milliseconds(found["high"])
    return f"{words.milliseconds(found['value'])} [{low}, {high}]"


def _lines(result: BenchResult) -> Iterator[str]:
    counts, flow = result.counts, result.throughput
    yield f"{result.name}: {counts['completed']} of {counts['offered']} offered requests completed"
    for kind, found in result.errors.items():
        yield f"  failed, {kind}: {found['n']}" + (f" ({found['example']})" if found["example"] else "")
    yield from table_text(result)
    if flow["requests_per_s"] is not None:
        tokens = flow["completion_tokens_per_s"]
        yield f"  {flow['requests_per_s']:.2f} requests/s, {tokens:.1f} tokens/s out"
    if result.goodput is not None:
        good = result.goodput
        interval = good["interval"]
        limits = ", ".join(f"{name} {limit:g}" for name, limit in good["slo"].items())
        yield (
            f"  goodput ({limits}): {good['good']} of {good['offered']} offered, {good['share']:.1%}"
            f" [{interval['low']:.1%}, {interval['high']:.1%}], {good['per_s']:.2f}/s"
        )
    yield _steady_line(result.steady)
    if recount := result.tokens.get("recount"):
        yield f"  {recount_text(recount)}"
    if result.server:
        parts = result.server["ttft_parts"]
        shown = ", ".join(f"{n.removesuffix('_s')} {words.milliseconds(p['p50'])}" for n, p in parts.items())
        yield f"  first token at the server, p50 in ms ({result.server['joined']} joined): {shown}"
    for doubt in result.doubts:
        yield f"  NOT VALID: {doubt}"


def recount_text(recount: Mapping[str, Any]) -> str:
    """How often the tokenizer and the server's usage disagree on an answer's tokens."""
    return (
        f"tokens: in {recount['differ_share']:.1%} of {recount['n']:,} answers the tokenizer counts otherwise"
        f" than the server, which counts {recount['difference_mean']:+.2f} on average (one is the end token)"
    )


def table_text(result: BenchResult) -> Iterator[str]:
    """A line per measure, columns aligned."""
    rows: list[Sequence[str]] = [("ms [95% interval]", *SHOWN)]
    for name in shown_measures(result):
        found = result.latency[name]
        rows.append((NAMES[name], *(percentile_text(found[q]) for q in SHOWN)))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _steady_line(steady: Mapping[str, Any]) -> str:
    if not steady["found"]:
        return f"  steady window: the whole run ({steady['reason']})"
    p50 = steady["latency"]["e2e_response_s"]["p50"]
    return (
        f"  steady window: {steady['from_s']:.1f} to {steady['to_s']:.1f} s, {steady['n']} requests,"
        f" end to end p50 {percentile_text(p50)} ms"
    )
