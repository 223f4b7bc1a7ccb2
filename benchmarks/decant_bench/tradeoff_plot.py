"""The ledger's scatter: quality against latency, the area of a bubble standing for the cost."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from decant_bench import number_text as words
from decant_bench.ledger_document import Ledger
from decant_bench.ledger_rows import LedgerRow
from decant_bench.plots import WIDTH, series_css, series_index, x_axis, y_axis
from decant_bench.quality import Proportion
from decant_bench.svg import Anchor, Frame, Scale, circle, drawing, group, line, log_bounds, marker, text

_FRAME = Frame(left=52, top=14, right=WIDTH - 20, bottom=330)
_SMALLEST, _LARGEST = 5.0, 24.0
_CHARACTER = 7.4
_LINE = 14.0


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Self) -> bool:
        """Whether the two overlap."""
        apart = self.right < other.left or other.right < self.left
        return not (apart or self.bottom < other.top or other.bottom < self.top)


@dataclass(frozen=True, slots=True)
class _Bubble:
    row: LedgerRow
    share: Proportion
    latency_s: float
    usd: float | None
    x: float
    y: float
    radius: float

    @property
    def price(self) -> str:
        """$ per 1,000 requests, in words."""
        return "cost unknown" if self.usd is None else words.usd(self.usd)

    @property
    def box(self) -> _Box:
        """What the bubble covers."""
        return _Box(self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)


@dataclass(frozen=True, slots=True)
class _Label:
    x: float
    y: float
    anchor: Anchor
    box: _Box
    leader: tuple[tuple[float, float], tuple[float, float]] | None

    @property
    def boxes(self) -> list[_Box]:
        """What the label and the points of its leader cover."""
        if self.leader is None:
            return [self.box]
        (x1, y1), (x2, y2) = self.leader
        along = [(x1 + (x2 - x1) * k / 12, y1 + (y2 - y1) * k / 12) for k in range(13)]
        return [self.box, *(_Box(x - 1, y - 1, x + 1, y + 1) for x, y in along)]


def tradeoff_plot(ledger: Ledger) -> str:
    """Accuracy against end-to-end p50 by logarithm, bubbles by $ per 1,000; empty when no stage has both."""
    shown = [row for row in ledger.rows if row.latency["e2e_response_s"]["p50"] and _quality(row)]
    if not shown:
        return ""
    shares = [share for row in shown if (share := _quality(row)) is not None]
    low, high = log_bounds([row.latency["e2e_response_s"]["p50"] or 0.0 for row in shown], spread=1.6)
    x, y = Scale(low, high, _FRAME.left, _FRAME.right, "log"), _quality_scale(shares)
    dearest = max((row.cost.total_usd_per_1000 or 0.0 for row in shown), default=0.0)
    bubbles = [_bubble(row, x=x, y=y, dearest=dearest) for row in shown]
    label = "end-to-end latency, p50 (response)"
    parts = [y_axis(y, _FRAME), x_axis(x, _FRAME, label=label, write=words.short_duration)]
    parts += [_draw(ledger, bubble, y=y) for bubble in sorted(bubbles, key=lambda bubble: -bubble.radius)]
    parts += _labels(bubbles)
    return drawing(parts, width=WIDTH, height=_FRAME.bottom + 44, label="Quality against latency and cost")


def _quality(row: LedgerRow) -> Proportion | None:
    return row.accuracy or row.agreement


def _quality_scale(shares: list[Proportion]) -> Scale:
    low, high = min(share.interval.low for share in shares), max(share.interval.high for share in shares)
    margin = max(0.05, 0.15 * (high - low))
    return Scale(max(0.0, low - margin), min(1.0, high + margin), _FRAME.bottom, _FRAME.top + _LARGEST)


def _bubble(row: LedgerRow, *, x: Scale, y: Scale, dearest: float) -> _Bubble:
    share, latency_s, usd = _quality(row), row.latency["e2e_response_s"]["p50"], row.cost.total_usd_per_1000
    assert share is not None
    assert latency_s is not None
    radius = max(_SMALLEST, _LARGEST * math.sqrt(usd / dearest)) if usd is not None and dearest else _SMALLEST
    return _Bubble(row, share, latency_s, usd, x(latency_s), y(share.value), radius)


def _draw(ledger: Ledger, bubble: _Bubble, *, y: Scale) -> str:
    share, interval = bubble.share, bubble.share.interval
    title = (
        f"{bubble.row.stage}: {words.percent(share.value)} ({words.percent_range(interval)}),"
        f" p50 {words.duration(bubble.latency_s)}, {bubble.price}"
    )
    marks = [line(bubble.x, y(interval.low), bubble.x, y(interval.high), css="whisker thin")]
    if bubble.usd is not None:
        marks.append(circle(bubble.x, bubble.y, bubble.radius, css="bubble"))
    marks.append(marker(bubble.x, bubble.y, shape=series_index(ledger, bubble.row.stage), radius=4))
    return group(marks, css=series_css(ledger, bubble.row.stage), title=title)


def _labels(bubbles: list[_Bubble]) -> list[str]:
    """A label per bubble where it covers nothing, tied to its bubble by a line where it stands apart."""
    taken = [bubble.box for bubble in bubbles]
    parts: list[str] = []
    for bubble in bubbles:
        others = [box for box in taken if box != bubble.box]
        places = list(_places(bubble))
        free = (
            place for place in places if not any(mine.meets(box) for mine in place.boxes for box in others)
        )
        label = next(free, places[0])
        taken += label.boxes
        if label.leader:
            (x1, y1), (x2, y2) = label.leader
            parts.append(line(x1, y1, x2, y2, css="leader"))
        parts.append(text(label.x, label.y, bubble.row.stage, css="name", anchor=label.anchor))
        parts.append(text(label.x, label.y + _LINE, bubble.price, css="muted", anchor=label.anchor))
    return parts


def _places(bubble: _Bubble) -> Iterator[_Label]:
    """Where a label may stand, best first: beside its bubble, else ever further below and above it."""
    width = _CHARACTER * max(len(bubble.row.stage), len(bubble.price))
    reach = bubble.radius + 7
    spots: list[tuple[float, float, Anchor]] = [
        (bubble.x + reach, bubble.y, "start"),
        (bubble.x - reach, bubble.y, "end"),
    ]
    for distance in range(30, 241, 15):
        for shift in (0, -45, 45, -90, 90):
            spots.append((bubble.x + shift, bubble.y + bubble.radius + distance, "middle"))
            spots.append((bubble.x + shift, bubble.y - bubble.radius - distance, "middle"))
    for x, y, anchor in spots:
        left = {"start": x, "middle": x - width / 2, "end": x - width}[anchor]
        box = _Box(left, y - _LINE + 2, left + width, y + _LINE + 5)
        if box.left > _FRAME.left and box.right < WIDTH and box.top > 0 and box.bottom < _FRAME.bottom:
            yield _Label(x, y, anchor, box, _leader(bubble, x, box) if anchor == "middle" else None)


def _leader(bubble: _Bubble, x: float, box: _Box) -> tuple[tuple[float, float], tuple[float, float]]:
    """From the bubble's rim to the side of the label that faces it."""
    end_y = box.top if box.top > bubble.y else box.bottom
    away = math.hypot(x - bubble.x, end_y - bubble.y) or 1.0
    reach = (bubble.radius + 1) / away
    return (bubble.x + (x - bubble.x) * reach, bubble.y + (end_y - bubble.y) * reach), (x, end_y)
