"""The plots of a run: latencies over time and as distributions, and where the time to first token went."""

from typing import Any

import numpy as np
import numpy.typing as npt

from decant_bench import number_text as words
from decant_bench.columns import Counts, RequestColumns, known
from decant_bench.plots import WIDTH, Curve, distribution_plot, x_axis
from decant_bench.server_timing import RANK_PARTS
from decant_bench.svg import Frame, Scale, circle, drawing, group, line, log_bounds, path, rectangle, text

_FRAME = Frame(left=60, top=8, right=WIDTH - 16, bottom=228)
_MOST_DOTS = 1500
_SLOWEST = 50
_BAR = 34.0
# From due and from sent: the same two colours in every plot.
RESPONSE, SERVICE, FAILED = "s0", "s2", "s3"
# Compute, wait, communication.
RANK_COLOURS = ("s4", "s1", "s3")


def time_plot(requests: RequestColumns, window: tuple[float, float] | None) -> str:
    """End-to-end latency of each request by when it was sent, from due and from sent.

    The steady window, in seconds from the first send, is shaded; requests without an answer are marks at the
    lower edge. Of many requests evenly spaced ones are shown, and always the slowest.
    """
    done = requests.pick(~np.isnan(requests.e2e_s))
    if not len(done):
        return ""
    zero_s = requests.actual_s.min()
    last_s = float(requests.actual_s.max() - zero_s)
    low, high = log_bounds(
        [float(f(each)) for each in (done.response_s, done.e2e_s) for f in (np.min, np.max)]
    )
    x = Scale(0.0, max(last_s, 1e-3), _FRAME.left, _FRAME.right)
    y = Scale(low, high, _FRAME.bottom, _FRAME.top, "log")
    parts: list[str] = []
    if window is not None:
        parts.append(rectangle(x(window[0]), _FRAME.top, x(window[1]), _FRAME.bottom, css="window"))
    parts += [_time_axis(y), x_axis(x, _FRAME, label="seconds from the first send", write=_plain)]
    shown = done.pick(_some(done))
    for css, values in ((RESPONSE, shown.response_s), (SERVICE, shown.e2e_s)):
        pairs = zip((shown.actual_s - zero_s).tolist(), values.tolist(), strict=True)
        parts.append(group([circle(x(at_s), y(max(v, low)), 1.8, css="dot") for at_s, v in pairs], css=css))
    failed = requests.actual_s[~requests.ok] - zero_s
    marks = [_tick(x(at_s)) for at_s in _thinned(failed).tolist()]
    parts.append(group(marks, css=FAILED, title=f"{len(failed)} not answered"))
    return drawing(parts, width=WIDTH, height=_FRAME.bottom + 44, label="End-to-end latency over time")


def flight_plot(requests: RequestColumns) -> str:
    """How many requests were in flight, over time; empty for none."""
    sent = requests.pick(~np.isnan(requests.e2e_s))
    if not len(sent):
        return ""
    begins_s, ends_s = sent.actual_s, sent.actual_s + sent.e2e_s
    at_s = np.concatenate([begins_s, ends_s]) - begins_s.min()
    # Of two changes at one time the end comes first.
    order = np.lexsort((np.repeat([1, -1], len(sent)), at_s))
    levels = np.cumsum(np.repeat([1, -1], len(sent))[order])
    most = int(levels.max())
    x = Scale(0.0, max(float(at_s.max()), 1e-3), _FRAME.left, _FRAME.right)
    y = Scale(0, most, _FRAME.bottom, _FRAME.top)
    parts = [x_axis(x, _FRAME, label="seconds from the first send", write=_plain)]
    for value in y.ticks():
        parts.append(line(_FRAME.left, y(value), _FRAME.right, y(value), css="grid"))
        parts.append(text(_FRAME.left - 8, y(value) + 4, f"{value:g}", css="tick", anchor="end"))
    places = _lasting(at_s[order])
    kept = zip(at_s[order][places].tolist(), levels[places].tolist(), strict=True)
    corners = [(0.0, 0)]
    for when_s, level in kept:
        corners += [(when_s, corners[-1][1]), (when_s, level)]
    curve = path([(x(when_s), y(level)) for when_s, level in corners], css="curve")
    parts.append(group([curve], css=SERVICE, title=f"at most {most} in flight"))
    return drawing(parts, width=WIDTH, height=_FRAME.bottom + 44, label="Requests in flight over time")


def latency_plots(requests: RequestColumns, *, measure: str) -> str:
    """The distributions from due and from sent of one measure: `ttft` or `e2e`."""
    done = requests.pick(requests.ok)
    first = measure == "ttft"
    due, sent = (done.response_ttft_s, done.ttft_s) if first else (done.response_s, done.e2e_s)
    label = "time to first token" if first else "end-to-end latency"
    curves = [
        Curve("from due", np.sort(known(due)).tolist(), RESPONSE, 0),
        Curve("from sent", np.sort(known(sent)).tolist(), SERVICE, 1),
    ]
    return distribution_plot(curves, label=label)


def parts_plot(server: dict[str, Any] | None) -> str:
    """The median parts of the time to first token as bars; empty without the server's timing."""
    parts = [
        (name.removesuffix("_s").replace("_", " "), found)
        for name, found in (server or {}).get("ttft_parts", {}).items()
        if found["n"]
    ]
    if not parts:
        return ""
    frame = Frame(left=130, top=8, right=WIDTH - 80, bottom=8 + _BAR * len(parts))
    low = min(0.0, *(found["p50"] for _, found in parts))
    x = Scale(low, max(found["p95"] for _, found in parts) or 1.0, frame.left, frame.right)
    marks = [x_axis(x, frame, label="p50 as a bar, p95 as a line", write=words.short_duration)]
    for index, (name, found) in enumerate(parts):
        top, bottom = frame.top + _BAR * index + 7, frame.top + _BAR * (index + 1) - 7
        bar = rectangle(x(0), top, x(found["p50"]), bottom, css="bar")
        reach = line(x(found["p50"]), (top + bottom) / 2, x(found["p95"]), (top + bottom) / 2, css="whisker")
        marks.append(group([bar, reach], css=f"s{index % 8}"))
        marks.append(text(frame.left - 10, bottom - 5, name, css="name", anchor="end"))
        value = f"{words.milliseconds(found['p50'])} ms"
        marks.append(text(WIDTH - 12, bottom - 5, value, css="value", anchor="end"))
    return drawing(marks, width=WIDTH, height=frame.bottom + 44, label="Parts of the time to first token")


def ranks_plot(server: dict[str, Any] | None) -> str:
    """Per rank what its steps of a request took, as one bar of compute, wait and communication."""
    rows: list[dict[str, Any]] = (server or {}).get("ranks") or []
    if not rows:
        return ""
    frame = Frame(left=130, top=8, right=WIDTH - 80, bottom=8 + _BAR * len(rows))
    longest = max(sum(row[part] for part in RANK_PARTS) for row in rows)
    x = Scale(0.0, longest or 1.0, frame.left, frame.right)
    marks = [x_axis(x, frame, label="median per request", write=words.short_duration)]
    for index, row in enumerate(rows):
        top, bottom = frame.top + _BAR * index + 7, frame.top + _BAR * (index + 1) - 7
        begin = 0.0
        for part, css in zip(RANK_PARTS, RANK_COLOURS, strict=True):
            end = begin + row[part]
            title = f"rank {row['rank']}: {part.removesuffix('_s')} {words.milliseconds(row[part])} ms"
            marks.append(group([rectangle(x(begin), top, x(end), bottom, css="bar")], css=css, title=title))
            begin = end
        marks.append(text(frame.left - 10, bottom - 5, f"rank {row['rank']}", css="name", anchor="end"))
        value = f"{words.milliseconds(begin)} ms"
        marks.append(text(WIDTH - 12, bottom - 5, value, css="value", anchor="end"))
    return drawing(marks, width=WIDTH, height=frame.bottom + 44, label="Compute, wait, communication by rank")


def _some(done: RequestColumns) -> Counts:
    """Places of at most so many requests, in order: evenly spaced ones and the slowest."""
    places = _thinned(np.arange(len(done)))
    slowest = np.argsort(done.response_s)[-_SLOWEST:]
    return np.union1d(places, slowest)


def _thinned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values[:: max(1, -(-len(values) // _MOST_DOTS))]


def _lasting(at_s: npt.NDArray[Any]) -> Counts:
    """Places of at most so many changes: of each stretch the one after which nothing changed for longest.

    Begins and ends come in turns, so that every n-th change may be of one kind only.
    """
    stretch = max(1, -(-len(at_s) // _MOST_DOTS))
    starts = np.arange(0, len(at_s), stretch)
    lasts_s = np.diff(at_s, append=at_s[-1])
    return np.array([start + int(np.argmax(lasts_s[start : start + stretch])) for start in starts])


def _time_axis(y: Scale) -> str:
    parts: list[str] = []
    for value in y.ticks():
        parts.append(line(_FRAME.left, y(value), _FRAME.right, y(value), css="grid"))
        label = words.short_duration(value)
        parts.append(text(_FRAME.left - 8, y(value) + 4, label, css="tick", anchor="end"))
    return "".join(parts)


def _tick(x: float) -> str:
    return rectangle(x - 0.8, _FRAME.bottom - 9, x + 0.8, _FRAME.bottom, css="bar")


def _plain(value: float) -> str:
    return f"{value:g}"
