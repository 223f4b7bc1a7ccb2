"""Small inline SVG drawings: scales and marks. Colours and fonts come from the page's style sheet by class.

Coordinates are in user units of the drawing's view box, y downwards, rounded to a hundredth of a unit.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Anchor = Literal["start", "middle", "end"]
ScaleKind = Literal["linear", "log", "root"]

_DIGITS = 2
_SHORTEST_S = 1e-6
_ROUND_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_LOG_STEPS = (1.0, 2.0, 5.0)
_FINER_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
_LEAST_TICKS = 3
_ROOT_TICKS = (-1.0, -0.8, -0.6, -0.4, -0.2, -0.05, -0.01, 0.0, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values from `low`..`high` to coordinates from `start`..`end`.

    `root` places a value by the signed square root of its size: small differences stay visible beside large.
    """

    low: float
    high: float
    start: float
    end: float
    kind: ScaleKind = "linear"

    def __call__(self, value: float) -> float:
        """The coordinate of a value; values outside the scale stand at its border."""
        low, high, at = (self._bent(v) for v in (self.low, self.high, min(max(value, self.low), self.high)))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values along the scale."""
        if self.kind == "log":
            return log_ticks(self.low, self.high)
        if self.kind == "root":
            return [value for value in _ROOT_TICKS if self.low <= value <= self.high]
        return linear_ticks(self.low, self.high)

    def _bent(self, value: float) -> float:
        if self.kind == "log":
            return math.log(value)
        return math.copysign(math.sqrt(abs(value)), value) if self.kind == "root" else value


def linear_ticks(low: float, high: float) -> list[float]:
    """About five multiples of 1, 2, 2.5 or 5 times a power of ten that lie in `low`..`high`."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in _ROUND_STEPS if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values in `low`..`high`: powers of ten over many decades, finer steps where these are too few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if len(exponents) > 4:
        return _within(low, high, exponents, (1.0,))
    coarse = _within(low, high, exponents, _LOG_STEPS)
    return coarse if len(coarse) >= _LEAST_TICKS else _within(low, high, exponents, _FINER_STEPS)


def _within(low: float, high: float, exponents: range, steps: Sequence[float]) -> list[float]:
    candidates = [step * 10.0**exponent for exponent in exponents for step in steps]
    return [value for value in candidates if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def log_bounds(values: Sequence[float], *, spread: float = 1.15) -> tuple[float, float]:
    """The ends of a logarithmic scale around positive values, at least a factor of three apart."""
    positive = [max(value, _SHORTEST_S) for value in values]
    low, high = min(positive) / spread, max(positive) * spread
    widen = max(1.0, math.sqrt(3.0 * low / high))
    return low / widen, high * widen


@dataclass(frozen=True, slots=True)
class Frame:
    """The plotting area inside a drawing."""

    left: float
    top: float
    right: float
    bottom: float


def drawing(parts: Iterable[str], *, width: float, height: float, label: str) -> str:
    """A whole `<svg>` that scales with its container; `label` is what a screen reader says."""
    frame = f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


def group(parts: Iterable[str], *, css: str, title: str = "") -> str:
    """Marks that belong together; `title` is their tooltip."""
    tooltip = f"<title>{escape(title)}</title>" if title else ""
    return f'<g class="{css}">{tooltip}{"".join(parts)}</g>'


def line(x1: float, y1: float, x2: float, y2: float, *, css: str) -> str:
    """A straight line."""
    return f'<line class="{css}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def path(points: Sequence[tuple[float, float]], *, css: str) -> str:
    """A line through the points."""
    steps = " ".join(f"{'L' if index else 'M'}{_n(x)} {_n(y)}" for index, (x, y) in enumerate(points))
    return f'<path class="{css}" d="{steps}"/>'


def text(x: float, y: float, content: str, *, css: str, anchor: Anchor = "start") -> str:
    """A text whose baseline starts, is centred, or ends at x."""
    return f'<text class="{css}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(content)}</text>'


def circle(x: float, y: float, radius: float, *, css: str) -> str:
    """A disc."""
    return f'<circle class="{css}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"/>'


def rectangle(x1: float, y1: float, x2: float, y2: float, *, css: str) -> str:
    """An upright rectangle between two corners."""
    width, height = abs(x2 - x1), abs(y2 - y1)
    corner = f'x="{_n(min(x1, x2))}" y="{_n(min(y1, y2))}"'
    return f'<rect class="{css}" {corner} width="{_n(width)}" height="{_n(height)}"/>'


def marker(x: float, y: float, *, shape: int, radius: float = 4.5) -> str:
    """One of six shapes, so that stages differ by more than colour."""
    if shape % 6 == 0:
        return circle(x, y, radius, css="mark")
    corners = {
        1: [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2: [(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)],
        3: [(0.0, -1.2), (1.15, 0.85), (-1.15, 0.85)],
        4: [(0.0, 1.2), (1.15, -0.85), (-1.15, -0.85)],
        5: [(-1.2, -0.4), (-0.4, -0.4), (-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4)],
    }[shape % 6]
    if shape % 6 == 5:
        corners += [(1.2, 0.4), (0.4, 0.4), (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4)]
    points = " ".join(f"{_n(x + radius * dx)},{_n(y + radius * dy)}" for dx, dy in corners)
    return f'<polygon class="mark" points="{points}"/>'


def _n(value: float) -> str:
    return f"{round(value, _DIGITS):g}" if abs(value) < 1000 else f"{value:.1f}"
