"""A run as one self-contained page: what it measured, how, and whether it may be trusted."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from decant_bench import number_text as words
from decant_bench.bench_plots import (
    FAILED,
    RANK_COLOURS,
    RESPONSE,
    SERVICE,
    flight_plot,
    latency_plots,
    parts_plot,
    ranks_plot,
    time_plot,
)
from decant_bench.bench_result import BenchResult
from decant_bench.bench_text import NAMES, SHOWN, recount_text, shown_measures
from decant_bench.columns import RequestColumns
from decant_bench.page import block, definitions, figure, page
from decant_bench.svg import circle, drawing, group

_WORDS = (
    "A latency counts from due (when the schedule said to send: it holds what a late client would hide) or"
    " from sent (when the bytes left). Percentiles are over completed requests, with 95% intervals of a"
    " bootstrap that draws stretches of neighbouring requests; one that the sample cannot reach is withheld."
    " Goodput is over all offered requests: those that failed, were shed or never sent are misses."
)


_STAMPED = {"kernel": "by the kernel", "read": "when read"}


def bench_page(result: BenchResult, requests: RequestColumns) -> str:
    """The whole page as HTML."""
    body = [
        '<p class="brand">Decant</p>',
        f"<h1>{escape(result.name)}</h1>",
        f'<p class="lead">{escape(_scope(result))}</p>',
        _verdict(result),
        _tiles(result),
        block("Latency", "In milliseconds, over the whole run.", _table(result, result.latency)),
        _steady(result),
        _errors(result),
        f'<div class="figures">{"".join(_figures(result, requests))}</div>',
        block("How it was measured", "", definitions(_conditions(result))),
        f"<footer>{escape(_WORDS)}</footer>",
    ]
    return page(result.name, body)


def _scope(result: BenchResult) -> str:
    load = result.load
    how = f"{load['clients']} clients in a closed loop" if load["clients"] else f"{load['arrival']} arrivals"
    rate = f" at {load['rate']:g}/s" if load["rate"] else ""
    return (
        f"{result.endpoint['model']} ({result.endpoint['engine']}) · {how}{rate} · {load['route']},"
        f" {'streamed' if load['stream'] else 'whole'} · {result.counts['offered']:,} requests offered"
    )


def _verdict(result: BenchResult) -> str:
    if result.valid:
        return '<div class="verdict good">✓ Valid: the client kept up with what it measured.</div>'
    items = "".join(f"<li>{escape(doubt)}</li>" for doubt in result.doubts)
    return f'<div class="verdict bad">✗ Not valid: the client was too slow.<ul>{items}</ul></div>'


def _tiles(result: BenchResult) -> str:
    counts, flow = result.counts, result.throughput
    tiles = [
        ("completed", f"{counts['completed']:,}", f"of {counts['offered']:,} offered"),
        ("requests per second", _number(flow["requests_per_s"]), "completed"),
        ("tokens per second", _number(flow["completion_tokens_per_s"]), "out"),
        *_latency_tiles(result),
    ]
    if result.goodput is not None and result.goodput["share"] is not None:
        good = result.goodput
        tiles.append(("goodput", words.percent(good["share"]), f"{good['per_s']:.2f} per second"))
    return '<div class="tiles">' + "".join(_tile(*tile) for tile in tiles) + "</div>"


def _latency_tiles(result: BenchResult) -> Iterable[tuple[str, str, str]]:
    for name, label in (("ttft_response_s", "first token, p50"), ("e2e_response_s", "end to end, p50")):
        found = result.latency[name]["p50"]
        if found["value"] is not None:
            low, high = words.duration(found["low"]), words.duration(found["high"])
            yield label, words.duration(found["value"]), f"{low} to {high}"


def _tile(label: str, number: str, beside: str) -> str:
    return (
        f'<div class="tile"><div class="label">{escape(label)}</div>'
        f'<div class="number">{escape(number)}</div><div class="beside">{escape(beside)}</div></div>'
    )


def _table(result: BenchResult, latency: Mapping[str, Any]) -> str:
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("measure", "n", "mean", *SHOWN))
    rows: list[str] = []
    for name in shown_measures(result):
        found = latency[name]
        if not found["n"]:
            continue
        cells = [f"{found['n']:,}", words.milliseconds(found["mean"])]
        shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "".join(
            _percentile_cell(found[q]) for q in SHOWN
        )
        rows.append(f'<tr><th scope="row">{escape(NAMES[name])}</th>{shown}</tr>')
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _percentile_cell(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return f'<td>{words.UNKNOWN}<span class="detail">needs {found["needs"]:,}</span></td>'
    low, high = words.milliseconds(found["low"]), words.milliseconds(found["high"])
    value = words.milliseconds(found["value"])
    return f'<td>{value}<span class="detail">{low} to {high}</span></td>'


def _steady(result: BenchResult) -> str:
    steady = result.steady
    if not steady["found"]:
        return block("Steady window", f"There is none: {steady['reason']}.", "")
    said = (
        f"From {steady['from_s']:.1f} to {steady['to_s']:.1f} s: {steady['n']:,} requests, in milliseconds."
    )
    return block("Steady window", said, _table(result, steady["latency"]))


def _errors(result: BenchResult) -> str:
    if not result.errors:
        return ""
    entries = {
        f"{kind}: {found['n']:,}": found["example"] or "never sent" for kind, found in result.errors.items()
    }
    words_of = f"{result.counts['failed']:,} of the offered requests, with the first one's words by kind."
    return block("Not completed", words_of, definitions(entries))


def _figures(result: BenchResult, requests: RequestColumns) -> Iterable[str]:
    sent = requests.pick(requests.was_sent)
    steady = result.steady
    window = (steady["from_s"], steady["to_s"]) if steady["found"] else None
    entries = [_swatch(RESPONSE, "from due"), _swatch(SERVICE, "from sent")]
    legend = _legend(entries)
    failed = [_swatch(FAILED, "not answered")] if result.counts["failed"] else []
    over_time = "Each request by when it was sent; the steady window is shaded."
    yield figure("Latency over time", over_time, time_plot(sent, window), legend=_legend(entries + failed))
    yield figure("In flight", "Requests sent and not yet answered.", flight_plot(sent))
    for heading, name in (("Time to first token", "ttft"), ("End-to-end latency", "e2e")):
        plot = latency_plots(sent, measure=name)
        yield figure(heading, "Share of completed requests within a time.", plot, legend=legend)
    joined = result.server["joined"] if result.server else 0
    said = f"From sent, over {joined:,} requests joined with the gateway's own timing."
    yield figure("Where the first token's time went", said, parts_plot(result.server))
    shares = zip(RANK_COLOURS, ("compute", "wait for a slower rank", "communication"), strict=True)
    legend = _legend([_swatch(css, name) for css, name in shares])
    said = "Of the steps that a request took part in; a rank that waits is faster than another."
    yield figure("Ranks", said, ranks_plot(result.server), legend=legend)


def _legend(entries: Sequence[str]) -> str:
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _swatch(css: str, name: str) -> str:
    mark = drawing([group([circle(8, 8, 5, css="mark")], css=css)], width=16, height=16, label="")
    return f'<li><span class="swatch" aria-hidden="true">{mark}</span>{escape(name)}</li>'


def _conditions(result: BenchResult) -> dict[str, str]:
    machine, client = result.hardware, result.client
    lag, late = client["loop_lag_s"]["p99"], client["schedule_error_s"]["p99"]
    entries = {
        "client": f"event loop's lag {_ms(lag)} (p99), schedule error {_ms(late)} (p99),"
        f" {client['cpu_share']:.0%} of a core, arrivals stamped {_STAMPED[client['stamps']]}",
        "seed": str(result.seed),
        "started": result.started_at,
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB,"
        f" {', '.join(machine['gpus']) or 'no GPU'}",
        "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        "commit": result.commit or "not from a checkout",
        "command": result.command,
    }
    if recount := result.tokens.get("recount"):
        entries["tokens"] = recount_text(recount).removeprefix("tokens: ")
    if result.load["source"]:
        entries["requests from"] = f"{result.load['source']}, sha256 {result.load['source_sha256'][:16]}"
    return entries


def _ms(value_s: float | None) -> str:
    return "not measured" if value_s is None else f"{words.milliseconds(value_s)} ms"


def _number(value: float | None) -> str:
    return words.UNKNOWN if value is None else words.significant(value)
