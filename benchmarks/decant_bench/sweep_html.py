"""A sweep as a page: latency against the offered rate."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from decant_bench import number_text as words
from decant_bench.page import block, figure, page
from decant_bench.plots import WIDTH, x_axis
from decant_bench.svg import Frame, Scale, drawing, group, line, log_bounds, marker, path, text

_FRAME = Frame(left=60, top=8, right=WIDTH - 16, bottom=288)
_CURVES = (("e2e_response_p50_s", "p50"), ("e2e_response_p95_s", "p95"), ("e2e_response_p99_s", "p99"))


def sweep_page(title: str, summary: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole page as HTML; rows are in order of rate."""
    heading = "Latency against the offered rate"
    words_of = "End to end, from due. A rate whose sample cannot reach a percentile has no mark for it."
    body = [
        '<p class="brand">Decant</p>',
        f"<h1>{escape(title)}</h1>",
        block("What was found", "", f"<pre>{escape(summary)}</pre>"),
        f'<div class="figures">{figure(heading, words_of, rate_plot(rows))}</div>',
    ]
    return page(title, body)


def rate_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """The percentiles of the end-to-end latency by rate; empty without any."""
    values = [row[name] for row in rows for name, _ in _CURVES if row[name]]
    if not values:
        return ""
    low_rate, high_rate = log_bounds([row["rate"] for row in rows])
    low, high = log_bounds([min(values), max(values)])
    x = Scale(low_rate, high_rate, _FRAME.left, _FRAME.right, "log")
    y = Scale(low, high, _FRAME.bottom, _FRAME.top, "log")
    parts = [x_axis(x, _FRAME, label="offered requests per second", write=lambda rate: f"{rate:g}")]
    for value in y.ticks():
        parts.append(line(_FRAME.left, y(value), _FRAME.right, y(value), css="grid"))
        tick = words.short_duration(value)
        parts.append(text(_FRAME.left - 8, y(value) + 4, tick, css="tick", anchor="end"))
    for index, (name, label) in enumerate(_CURVES):
        points = [(x(row["rate"]), y(row[name])) for row in rows if row[name]]
        if points:
            marks = [path(points, css="curve"), *(marker(*point, shape=index) for point in points)]
            marks.append(text(points[-1][0] - 8, points[-1][1] - 9, label, css="name", anchor="end"))
            parts.append(group(marks, css=f"s{(0, 2, 3)[index]}", title=label))
    return drawing(parts, width=WIDTH, height=_FRAME.bottom + 44, label="Latency against rate")
