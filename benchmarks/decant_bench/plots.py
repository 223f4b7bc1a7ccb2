"""The ledger's plots by stage: what each lost, its accuracy by length, its latency distribution."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from decant_bench import number_text as words
from decant_bench.ledger_document import Ledger
from decant_bench.ledger_rows import LedgerRow
from decant_bench.quality import Difference, LengthBucket
from decant_bench.svg import Frame, Scale, ScaleKind, drawing, group, line, log_bounds, marker, path, text

WIDTH = 560.0
_LEFT, _RIGHT = 52.0, WIDTH - 16
_LOSS_ROW = 56.0
_LOSS_LEFT, _LOSS_RIGHT = 168.0, WIDTH - 66
_WIDE = 0.2
_PANEL = 220.0
_DODGE = 9.0
_MOST_STEPS = 300


def series_css(ledger: Ledger, stage: str) -> str:
    """The style class that gives a stage its colour, the same in every plot."""
    return f"s{series_index(ledger, stage) % 8}"


def series_index(ledger: Ledger, stage: str) -> int:
    """The stage's place in the ledger."""
    return [row.stage for row in ledger.rows].index(stage)


def loss_plot(ledger: Ledger) -> str:
    """Each stage's paired difference to its parent with its interval, and a dashed line at its allowance."""
    pairs = [(row, row.difference) for row in ledger.rows if row.difference is not None]
    if not pairs:
        return ""
    frame = Frame(left=_LOSS_LEFT, top=8, right=_LOSS_RIGHT, bottom=8 + _LOSS_ROW * len(pairs))
    x = _loss_scale(pairs, frame)
    bent = ", square-root axis" if x.kind == "root" else ""
    label = f"change in {pairs[0][1].basis}, percentage points{bent}"
    parts = [x_axis(x, frame, label=label, write=_points_tick)]
    parts.append(line(x(0), frame.top, x(0), frame.bottom, css="zero"))
    for index, (row, difference) in enumerate(pairs):
        parts.append(_loss_row(ledger, row, difference, x=x, middle=frame.top + _LOSS_ROW * (index + 0.5)))
    return drawing(
        parts, width=WIDTH, height=frame.bottom + 44, label="Change of each stage against its parent"
    )


def _loss_scale(pairs: Sequence[tuple[LedgerRow, Difference]], frame: Frame) -> Scale:
    ends = [0.0]
    for row, difference in pairs:
        ends += [difference.paired.interval.low, difference.paired.interval.high, -(row.allowance or 0.0)]
    margin = 0.08 * ((max(ends) - min(ends)) or 0.02)
    kind: ScaleKind = "root" if max(ends) - min(ends) > _WIDE else "linear"
    return Scale(min(ends) - margin, max(ends) + margin, frame.left, frame.right, kind)


def _loss_row(ledger: Ledger, row: LedgerRow, difference: Difference, *, x: Scale, middle: float) -> str:
    paired = difference.paired
    interval = words.points_range(paired.interval)
    marks = [
        line(x(paired.interval.low), middle, x(paired.interval.high), middle, css="whisker"),
        marker(x(paired.mean), middle, shape=series_index(ledger, row.stage), radius=5.5),
        text(_RIGHT, middle + 4, words.points(paired.mean), css="value", anchor="end"),
    ]
    allowed = ""
    if row.allowance is not None:
        marks.append(line(x(-row.allowance), middle - 15, x(-row.allowance), middle + 15, css="allowance"))
        allowed = f"; may lose {100 * row.allowance:.1f}"
    title = f"{row.stage} to {difference.to}: {words.points(paired.mean)} ({interval}), n {paired.n}{allowed}"
    names = [
        text(_LOSS_LEFT - 14, middle - 2, row.stage, css="name", anchor="end"),
        text(_LOSS_LEFT - 14, middle + 12, f"against {difference.to}", css="muted", anchor="end"),
    ]
    return "".join(names) + group(marks, css=series_css(ledger, row.stage), title=title)


def length_plot(ledger: Ledger) -> str:
    """Accuracy by problem length per stage with 95% intervals, a panel per group; empty without lengths."""
    groups = list(dict.fromkeys(bucket.group for row in ledger.rows for bucket in row.by_length))
    parts: list[str] = []
    for number, name in enumerate(groups):
        top = number * (_PANEL + 62)
        parts.append(_length_panel(ledger, name, top=top, titled=len(groups) > 1))
    height = len(groups) * (_PANEL + 62)
    return drawing(parts, width=WIDTH, height=height, label="Accuracy by problem length") if parts else ""


def _length_panel(ledger: Ledger, name: str | None, *, top: float, titled: bool) -> str:
    frame = Frame(left=_LEFT, top=top + (24 if titled else 8), right=_RIGHT, bottom=top + _PANEL + 8)
    series = {row.stage: [bucket for bucket in row.by_length if bucket.group == name] for row in ledger.rows}
    bands = sorted({(bucket.low, bucket.high) for buckets in series.values() for bucket in buckets})
    place = Scale(-0.6, len(bands) - 0.4, frame.left, frame.right)
    y = Scale(0, 1, frame.bottom, frame.top)
    parts = [y_axis(y, frame)]
    if titled:
        parts.append(text(frame.left, top + 12, str(name or "no group"), css="name"))
    for index, (low, high) in enumerate(bands):
        label = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        parts.append(text(place(index), frame.bottom + 16, label, css="tick", anchor="middle"))
    parts.append(
        text((frame.left + frame.right) / 2, frame.bottom + 34, "problem length", css="axis", anchor="middle")
    )
    step = min(_DODGE, 0.7 * (place(1) - place(0)) / len(series))
    for index, (stage, buckets) in enumerate(series.items()):
        shift = (index - (len(series) - 1) / 2) * step
        xs = [place(bands.index((bucket.low, bucket.high))) + shift for bucket in buckets]
        parts.append(_length_series(ledger, stage, buckets, xs=xs, y=y))
    return "".join(parts)


def _length_series(
    ledger: Ledger, stage: str, buckets: Sequence[LengthBucket], *, xs: Sequence[float], y: Scale
) -> str:
    css, shape = series_css(ledger, stage), series_index(ledger, stage)
    marks = [path([(x, y(b.share.value)) for x, b in zip(xs, buckets, strict=True)], css="trend")]
    for x, bucket in zip(xs, buckets, strict=True):
        share = bucket.share
        length = f"{bucket.low:g}" if bucket.low == bucket.high else f"{bucket.low:g} to {bucket.high:g}"
        interval = words.percent_range(share.interval)
        title = f"{stage}, length {length}: {words.percent(share.value)} ({interval}), n {share.n}"
        whisker = line(x, y(share.interval.low), x, y(share.interval.high), css="whisker thin")
        marks.append(group([whisker, marker(x, y(share.value), shape=shape)], css="point", title=title))
    return group(marks, css=css)


def latency_plot(ledger: Ledger, latencies_s: Mapping[str, Sequence[float]], *, label: str) -> str:
    """The share of requests answered within each time, per stage; empty without latencies."""
    curves = [
        Curve(stage, values, series_css(ledger, stage), series_index(ledger, stage))
        for stage, values in latencies_s.items()
    ]
    return distribution_plot(curves, label=label)


@dataclass(frozen=True, slots=True)
class Curve:
    """A sorted sample with its name, its colour class and the number of its dash pattern."""

    name: str
    values: Sequence[float]
    css: str
    dash: int


def distribution_plot(curves: Sequence[Curve], *, label: str) -> str:
    """The share of values up to each value, on a logarithmic axis of time; empty without values."""
    known = [curve for curve in curves if len(curve.values)]
    if not known:
        return ""
    frame = Frame(left=_LEFT, top=8, right=_RIGHT, bottom=8 + _PANEL)
    low, high = log_bounds([value for curve in known for value in (curve.values[0], curve.values[-1])])
    x, y = Scale(low, high, frame.left, frame.right, "log"), Scale(0, 1, frame.bottom, frame.top)
    parts = [y_axis(y, frame), x_axis(x, frame, label=label, write=words.short_duration)]
    for curve in known:
        values, n = curve.values, len(curve.values)
        p50, p99 = values[n // 2], values[min(n - 1, int(0.99 * n))]
        title = f"{curve.name}: half within {words.duration(p50)}, 99% within {words.duration(p99)}, n {n}"
        # A logarithm has no place for nothing.
        steps = [(x(max(value, low)), y(share)) for value, share in _steps(values)]
        parts.append(group([path(steps, css=f"curve dash{curve.dash % 4}")], css=curve.css, title=title))
    return drawing(parts, width=WIDTH, height=frame.bottom + 44, label=f"Distribution of {label}")


def _steps(values: Sequence[float]) -> list[tuple[float, float]]:
    """Corners of the empirical distribution function of sorted values, thinned where they are many."""
    n = len(values)
    stride = max(1, n // _MOST_STEPS)
    corners = [(values[0], 0.0)]
    for index in sorted({*range(0, n, stride), n - 1}):
        corners += [(values[index], corners[-1][1]), (values[index], (index + 1) / n)]
    return corners


def x_axis(scale: Scale, frame: Frame, *, label: str, write: Callable[[float], str]) -> str:
    """Grid lines, tick labels and the name of a horizontal axis below the frame."""
    parts = [text((frame.left + frame.right) / 2, frame.bottom + 36, label, css="axis", anchor="middle")]
    for value in scale.ticks():
        parts.append(line(scale(value), frame.top, scale(value), frame.bottom, css="grid"))
        parts.append(text(scale(value), frame.bottom + 17, write(value), css="tick", anchor="middle"))
    return "".join(parts)


def y_axis(scale: Scale, frame: Frame) -> str:
    """Grid lines and percentages of a vertical axis of shares."""
    parts: list[str] = []
    for value in scale.ticks():
        parts.append(line(frame.left, scale(value), frame.right, scale(value), css="grid"))
        parts.append(text(frame.left - 8, scale(value) + 4, f"{100 * value:g}%", css="tick", anchor="end"))
    return "".join(parts)


def _points_tick(value: float) -> str:
    return "0" if value == 0 else words.points(value).removesuffix(".0")
