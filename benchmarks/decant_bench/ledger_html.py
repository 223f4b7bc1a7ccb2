"""The ledger as one self-contained page: no scripts, nothing loaded, readable in light and dark."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from decant_bench import ledger_cells as cells
from decant_bench.headline import Tile, headline
from decant_bench.ledger_cells import Cell
from decant_bench.ledger_document import Ledger
from decant_bench.ledger_rows import LedgerRow, Sample
from decant_bench.page import block, figure, page
from decant_bench.plots import latency_plot, length_plot, loss_plot, series_css, series_index
from decant_bench.svg import drawing, group, marker
from decant_bench.tradeoff_plot import tradeoff_plot

_MOODS = {
    "kept": "good",
    "same": "good",
    "unclear": "doubt",
    "LOST": "bad",
    "BROKEN": "bad",
    "never": "doubt",
}
_SIGNS = {"good": "✓", "doubt": "?", "bad": "✗"}

Columns = Sequence[tuple[str, str, Callable[[LedgerRow], Cell]]]

_QUALITY: Columns = (
    ("stage", "engine", cells.stage_cell),
    ("accuracy", "95% interval", lambda row: cells.share_cell(row.accuracy)),
    ("agreement", "95% interval", lambda row: cells.share_cell(row.agreement)),
    ("paired change", "points, 95% interval", lambda row: cells.difference_cell(row.difference)),
    ("gained, lost", "exact McNemar", cells.change_cell),
    (
        "against teacher",
        "points, 95% interval",
        lambda row: cells.against_teacher_cell(row.difference_to_teacher),
    ),
    ("allowance", "points", cells.allowance_cell),
    ("golden prompts", "as served", cells.golden_cell),
    ("completed", "requests", cells.requests_cell),
)
_SPEED: Columns = (
    ("stage", "engine", cells.stage_cell),
    ("first token, ms", "p50 / p95 / p99", lambda row: cells.latency_cell(row, "ttft")),
    ("end to end, ms", "p50 / p95 / p99", lambda row: cells.latency_cell(row, "e2e")),
    ("tokens out", "mean", cells.tokens_cell),
    ("on disk", "weights", cells.size_cell),
    ("requests/s", "when full", cells.capacity_cell),
    ("$ per 1,000", "serving + prepared", cells.cost_cell),
    ("break-even", "requests", cells.break_even_cell),
)


def ledger_page(ledger: Ledger, samples: Mapping[str, Sample]) -> str:
    """The whole page as HTML."""
    body = [
        '<p class="brand">Decant</p>',
        f"<h1>{escape(ledger.title)}</h1>",
        f'<p class="lead">{escape(_scope(ledger))}</p>',
        _verdict(ledger),
        _tiles(headline(ledger)),
        block("Quality", _quality_words(ledger), _table(ledger, _QUALITY)),
        block("Latency and cost", _speed_words(ledger), _table(ledger, _SPEED)),
        f'<div class="figures">{"".join(_figures(ledger, samples))}</div>',
        _notes(ledger),
        _conditions(ledger),
        f"<footer>{escape(_WORDS)}</footer>",
    ]
    return page(ledger.title, body)


_WORDS = (
    "Accuracy and agreement carry Wilson intervals. A paired change is the stage minus its parent on the same"
    " requests; gained and lost count the requests whose outcome changed. Response latency counts from when"
    " the schedule meant to send a request, service latency from when it was sent. Capacity is what a closed"
    " loop of clients completed per second while all of them were busy. Break-even is the volume from which a"
    " stage, its labeling and training paid, is cheaper than the teacher."
)


def _scope(ledger: Ledger) -> str:
    graded = f" ({ledger.graded:,} of them with gold)" if ledger.graded != ledger.requests else ""
    scope = f"{len(ledger.rows)} stages on the same {ledger.requests:,} requests{graded}"
    return f"{scope} · teacher: {ledger.teacher} · in use: {ledger.served}"


def _verdict(ledger: Ledger) -> str:
    unclear = [row.stage for row in ledger.rows if row.verdict == "unclear"]
    if ledger.losses:
        items = "".join(f"<li>{escape(loss.sentence)}</li>" for loss in ledger.losses)
        names = ", ".join(loss.stage for loss in ledger.losses)
        return (
            f'<div class="verdict bad">✗ Lost more than its allowance: {escape(names)}<ul>{items}</ul></div>'
        )
    if unclear:
        names = ", ".join(unclear)
        text = f"? Not settled by {ledger.requests:,} requests: {names} may have lost more than allowed."
        return f'<div class="verdict doubt">{escape(text)}</div>'
    if any(row.verdict for row in ledger.rows):
        return '<div class="verdict good">✓ No stage is shown to lose more than its allowance.</div>'
    return ""


def _tiles(tiles: Sequence[Tile]) -> str:
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><div class="label">{escape(tile.label)}</div>'
            f'<div class="number">{escape(tile.number)}</div>'
            f'<div class="beside">{escape(tile.beside)}</div></div>'
            for tile in tiles
        )
        + "</div>"
    )


def _table(ledger: Ledger, columns: Columns) -> str:
    heads = "".join(
        f'<th scope="col">{escape(name)}<span>{escape(under)}</span></th>' for name, under, _ in columns
    )
    lines: list[str] = []
    for row in ledger.rows:
        first, *others = (cell_of(row) for _, _, cell_of in columns)
        named = f'<th scope="row">{swatch(ledger, row.stage)}{_cell(first)}</th>'
        lines.append(f"<tr>{named}{''.join(f'<td>{_cell(cell)}</td>' for cell in others)}</tr>")
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _cell(cell: Cell) -> str:
    mood = _MOODS.get(cell.value)
    value = escape(cell.value)
    if mood is not None:
        value = f'<span class="chip {mood}">{_SIGNS[mood]} {value.lower()}</span>'
    return value + (f'<span class="detail">{escape(cell.detail)}</span>' if cell.detail else "")


def swatch(ledger: Ledger, stage: str) -> str:
    """The stage's mark in its colour."""
    mark = marker(8, 8, shape=series_index(ledger, stage), radius=5)
    inner = group([mark], css=series_css(ledger, stage))
    return (
        f'<span class="swatch" aria-hidden="true">{drawing([inner], width=16, height=16, label=stage)}</span>'
    )


def _figures(ledger: Ledger, samples: Mapping[str, Sample]) -> Iterable[str]:
    e2e = {stage: sample.e2e_response_s for stage, sample in samples.items()}
    ttft = {stage: sample.ttft_response_s for stage, sample in samples.items()}
    basis = "Accuracy" if ledger.graded else "Agreement with the teacher"
    yield figure(
        "What each stage changed",
        "Paired difference with its 95% interval. The dashed line is what the stage may lose.",
        loss_plot(ledger),
    )
    yield figure(
        "Quality, latency, cost",
        f"{basis} with its interval against latency. The area of a bubble is its $ per 1,000 requests.",
        tradeoff_plot(ledger),
    )
    legend = "".join(f"<li>{swatch(ledger, row.stage)}{escape(row.stage)}</li>" for row in ledger.rows)
    legend = f'<ul class="legend">{legend}</ul>'
    lengths = length_plot(ledger)
    yield figure(
        f"{basis} by problem length", "With 95% Wilson intervals.", lengths, legend=legend, css="tall"
    )
    for heading, words, latencies in (
        ("End-to-end latency", "Share of requests answered within a time, under the replayed load.", e2e),
        ("Time to first token", "Share of requests whose first token came within a time.", ttft),
    ):
        plot = latency_plot(ledger, latencies, label=f"{heading[0].lower()}{heading[1:]} (response)")
        yield figure(heading, words, plot, legend=legend)


def _notes(ledger: Ledger) -> str:
    if not ledger.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in ledger.notes)
    return f'<section class="block"><h2>Before comparing</h2><ul class="notes">{items}</ul></section>'


def _quality_words(ledger: Ledger) -> str:
    rule = {
        "significant": "A stage has lost when its loss exceeds the allowance and the interval excludes zero.",
        "non_inferior": "A stage has lost unless its interval excludes a loss as large as the allowance.",
    }[ledger.gate_rule]
    return (
        f"Every number is over the same {ledger.requests:,} requests; one that failed counts as wrong. {rule}"
    )


def _speed_words(ledger: Ledger) -> str:
    price = (
        f" Hardware costs ${ledger.price_per_hour:g} per hour." if ledger.price_per_hour is not None else ""
    )
    return (
        "Latency under the same replayed load: response latency, and under it service latency."
        f"{price} Prepared is labeling and training, spread over {ledger.volume:,} requests."
    )


def _conditions(ledger: Ledger) -> str:
    machine = ledger.provenance["hardware"]
    load = next((row.load for row in ledger.rows if row.load), dict[str, Any]())
    rate = f"{load['rate']:g} requests/s, " if load.get("rate") else ""
    clients = f"{load['clients']} clients, " if load.get("clients") else ""
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    entries = {
        "load": f"{load.get('arrival', 'unknown')} arrivals, {rate}{clients}seed {load.get('seed', '?')}",
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {gpus}",
        "versions": ", ".join(f"{name} {version}" for name, version in ledger.provenance["versions"].items()),
        "commit": ledger.provenance["commit"] or "not from a checkout",
    }
    lines = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in entries.items())
    for name, record in ledger.provenance["evaluations"].items():
        lines += (
            f"<dt>{escape(name)}</dt><dd><code>{escape(record['command'] or 'command unknown')}</code></dd>"
        )
    return f'<section class="block"><h2>How it was measured</h2><dl>{lines}</dl></section>'
