"""`quality.html`: what quantizing cost, as one page without scripts: size against loss, and layer by layer.

It is drawn from the content of `quality.json`, one or several of them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from decant.files import write_json, write_text

QUALITY_JSON, QUALITY_PAGE = "quality.json", "quality.html"

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 620, 16, 248
# Losses below this are drawn at it: float noise, and a logarithmic axis has no zero.
_LEAST_LOSS = 1e-7
_COLOURS = ("#2f6fb0", "#c05a1c", "#2f8f5b", "#8d4bb0", "#a8323e", "#70740f")
_STYLE = """
:root{color-scheme:light dark;--ink:#1c1f23;--soft:#667;--line:#ccd;--back:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ea;--soft:#99a;--line:#444a55;--back:#15181c}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:860px;
margin:2rem auto;padding:0 1rem}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
.wide{overflow-x:auto}td,th{padding:.3rem .5rem;border-bottom:1px solid var(--line);text-align:right}
td:first-child,th:first-child{text-align:left}svg{width:100%;height:auto}p{color:var(--soft)}
text{font-size:11px;fill:var(--ink)}.axis{stroke:var(--line)}.soft{fill:var(--soft)}
"""
_MEANINGS = """Divergence is KL(unquantized || quantized) of the next token, in nats, with a 95 % interval
over rows. Flips are greedy guesses that went from right to wrong or back."""
_LAYER_WORDS = """Squared error of the hidden states over what the layer adds to them. Filled: the layer
alone, on the unquantized model's inputs. Hollow: with all errors before it."""


def quality_page(reports: Sequence[Mapping[str, Any]]) -> str:
    """The whole page; every report must be of the same model and the same held-out rows."""
    first = reports[0]
    title = f"{first['model']}: what quantizing cost"
    held = first["heldout"]
    words = (
        f"Against the unquantized model on {held['tokens']} tokens of {held['rows']} held-out rows."
        f" {_MEANINGS}"
    )
    sections = [
        f"<h1>{escape(title)}</h1><p>{escape(words)}</p>{_table(reports)}",
        f"<h2>Size against loss</h2>{_size_plot(reports)}",
        f"<h2>Error behind each layer</h2><p>{_LAYER_WORDS}</p>{_layer_plot(reports)}",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · Decant</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _table(reports: Sequence[Mapping[str, Any]]) -> str:
    heads = ["method", "MB", "perplexity", "KL mean", "p99", "max", "same top token", "flips"]
    rows = [[*_unquantized_cells(reports[0])], *(_cells(report) for report in reports)]
    if any("speed" in report for report in reports):
        heads += ["engine", "load, s", "prefill, tokens/s", "decode, tokens/s"]
        rows = [row + more for row, more in zip(rows, [_DASHES, *map(_speed_cells, reports)], strict=True)]
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr>{lines}</table></div>'


def _unquantized_cells(report: Mapping[str, Any]) -> tuple[str, ...]:
    perplexity = f"{report['heldout']['perplexity_unquantized']:.4g}"
    return ("unquantized, 16 bits", _megabytes(report["size_16bit_bytes"]), perplexity, *["–"] * 5)


def _cells(report: Mapping[str, Any]) -> list[str]:
    held = report["heldout"]
    return [
        str(report["method"]),
        _megabytes(report["size_bytes"]),
        f"{held['perplexity']:.4g}",
        f"{held['kl_mean']:.2g} ({held['kl_mean_low']:.2g} to {held['kl_mean_high']:.2g})",
        f"{held['kl_p99']:.2g}",
        f"{held['kl_max']:.2g}",
        f"{held['top1_agreement']:.2%}",
        f"{held['flips']:.2%}",
    ]


_DASHES = ["–"] * 4


def _speed_cells(report: Mapping[str, Any]) -> list[str]:
    speed = report.get("speed")
    if speed is None:
        return _DASHES
    rates = (speed["prefill_tokens_per_s"], speed["decode_tokens_per_s"])
    spreads = [f"{r['median']:.4g} ({r['low']:.4g} to {r['high']:.4g}, n {r['n']})" for r in rates]
    return [str(speed["engine"]), f"{speed['load_s']:.1f}", *spreads]


def record_speed(folder: Path, speed: Mapping[str, Any], *, method: str) -> None:
    """Adds what was timed to an artifact's `quality.json`, and to the page where rows were measured."""
    file = folder / QUALITY_JSON
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    report = {"method": method, **known, "speed": speed}
    write_json(file, report)
    if "heldout" in report:
        write_text(folder / QUALITY_PAGE, quality_page([report]))


def _size_plot(reports: Sequence[Mapping[str, Any]]) -> str:
    """Megabytes across, mean divergence up (logarithmic), its interval as a bar."""
    sizes = [report["size_bytes"] / 1e6 for report in reports]
    full = max([*sizes, reports[0]["size_16bit_bytes"] / 1e6]) * 1.08
    losses = [r["heldout"][key] for r in reports for key in ("kl_mean", "kl_mean_low", "kl_mean_high")]
    low, high = _decades(losses)
    parts = [_frame(low, high, up="mean KL, nats"), _across(full)]
    for index, (report, size) in enumerate(zip(reports, sizes, strict=True)):
        held, colour = report["heldout"], _COLOURS[index % len(_COLOURS)]
        x = _LEFT + (_RIGHT - _LEFT) * size / full
        y, top, foot = (_up(held[k], low, high) for k in ("kl_mean", "kl_mean_high", "kl_mean_low"))
        anchor, shift = ("end", -9) if x > (_LEFT + _RIGHT) / 2 else ("start", 9)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{foot:.1f}" stroke="{colour}"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
            f'<text x="{x + shift:.1f}" y="{y - 7:.1f}" text-anchor="{anchor}">'
            f"{escape(str(report['method']))}</text>"
        )
    return _drawing(parts, "size against mean divergence")


def _layer_plot(reports: Sequence[Mapping[str, Any]]) -> str:
    errors = [layer[key] for report in reports for layer in report["layers"] for key in ("own", "drift")]
    low, high = _decades(errors)
    count = len(reports[0]["layers"])
    parts = [_frame(low, high, up="relative error"), _text((_LEFT + _RIGHT) / 2, _HEIGHT - 14, "layer")]
    step = max(1, count // 12)
    parts += [_text(_layer_x(i, count), _BOTTOM + 18, str(i)) for i in range(0, count, step)]
    for index, report in enumerate(reports):
        colour = _COLOURS[index % len(_COLOURS)]
        for layer in report["layers"]:
            x = _layer_x(layer["layer"], count) + 4 * (index - (len(reports) - 1) / 2)
            tip = (
                f"{report['method']}, {layer['layer']}: alone {layer['own']:.2g}, in all {layer['drift']:.2g}"
            )
            own, drift = _up(layer["own"], low, high), _up(layer["drift"], low, high)
            parts.append(
                f"<g><title>{escape(tip)}</title>"
                f'<circle cx="{x:.1f}" cy="{own:.1f}" r="4" fill="{colour}"/>'
                f'<circle cx="{x:.1f}" cy="{drift:.1f}" r="4" fill="none" stroke="{colour}"/></g>'
            )
    return _drawing(parts, "error behind each layer") + _legend(reports)


def _legend(reports: Sequence[Mapping[str, Any]]) -> str:
    if len(reports) == 1:
        return ""
    names = (
        f'<span style="color:{_COLOURS[index % len(_COLOURS)]}">●</span> {escape(str(report["method"]))}'
        for index, report in enumerate(reports)
    )
    return f"<p>{' &nbsp; '.join(names)}</p>"


def _layer_x(index: int, count: int) -> float:
    return _LEFT + (_RIGHT - _LEFT) * (index + 0.5) / count


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Whole powers of ten around the values."""
    shown = [max(value, _LEAST_LOSS) for value in values]
    low, high = math.floor(math.log10(min(shown))), math.ceil(math.log10(max(shown)))
    return low, max(high, low + 1)


def _up(value: float, low: int, high: int) -> float:
    share = (math.log10(max(value, _LEAST_LOSS)) - low) / (high - low)
    return _BOTTOM - min(max(share, 0.0), 1.0) * (_BOTTOM - _TOP)


def _frame(low: int, high: int, *, up: str) -> str:
    lines = [
        f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_up(10.0**power, low, high):.1f}"'
        f' y2="{_up(10.0**power, low, high):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{_up(10.0**power, low, high) + 4:.1f}" text-anchor="end">'
        f"{10.0**power:g}</text>"
        for power in range(low, high + 1)
    ]
    middle = (_TOP + _BOTTOM) / 2
    turned = f'transform="rotate(-90 14 {middle})"'
    return (
        "".join(lines) + f'<text class="soft" x="14" y="{middle}" text-anchor="middle" {turned}>{up}</text>'
    )


def _across(full: float) -> str:
    step = 10 ** math.floor(math.log10(full))
    step = step / 2 if full / step < 3 else step
    ticks = [step * index for index in range(int(full / step) + 1)]
    texts = [_text(_LEFT + (_RIGHT - _LEFT) * tick / full, _BOTTOM + 18, f"{tick:g}") for tick in ticks]
    return "".join(texts) + _text((_LEFT + _RIGHT) / 2, _HEIGHT - 14, "megabytes of weights")


def _text(x: float, y: float, content: str) -> str:
    return f'<text class="soft" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(content)}</text>'


def _drawing(parts: Sequence[str], label: str) -> str:
    frame = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


def _megabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.3g}"
