"""Accuracy by problem length, arm by arm and world by world, as an SVG file that stands alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from decant.stats import wilson
from decant_bench.plots import y_axis
from decant_bench.svg import Frame, Scale, drawing, group, line, marker, path, text

_WIDTH, _HEIGHT, _PANEL = 860, 330, 400
_LEFT, _TOP, _BOTTOM = 44, 34, 262
_CHANCE: Mapping[str, float] = {"counter": 0.1, "swap": 0.2}

# Whoever looks at the file alone, on a light page or a dark one, needs its own colours and ground.
_STYLE = """<style>
svg { background: #fff; font: 12px system-ui, "Liberation Sans", Arial, sans-serif; fill: #221c1f }
.tick, .axis { fill: #6b6267 } .name { font-weight: 600 } .grid { stroke: #eee8e4 }
.chance { stroke: #6b6267; stroke-dasharray: 4 3 } .trend { fill: none; stroke: var(--c); stroke-width: 1.6 }
.whisker { stroke: var(--c); stroke-width: 1.6 } .mark { fill: var(--c) }
.s0 { --c: #8a8f98 } .s1 { --c: #7a1f3d } .s2 { --c: #2f6db5 }
</style>"""


def length_plot(cells: Sequence[Mapping[str, Any]]) -> str:
    """The drawing for the cells of a results file; seeds are taken together, with Wilson's 95 % intervals."""
    worlds = list(dict.fromkeys(cell["world"] for cell in cells))
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    parts = [_STYLE]
    for number, world in enumerate(worlds):
        frame = Frame(_LEFT + number * (_PANEL + 20), _TOP, number * (_PANEL + 20) + _PANEL, _BOTTOM)
        parts.append(_panel([cell for cell in cells if cell["world"] == world], world, arms, frame=frame))
    parts += [_key(arm, index) for index, arm in enumerate(arms)]
    if any(world in _CHANCE for world in worlds):
        left = _key_left(len(arms))
        parts.append(line(left - 8, _HEIGHT - 12, left + 8, _HEIGHT - 12, css="chance"))
        parts.append(text(left + 14, _HEIGHT - 8, "chance", css="tick"))
    return drawing(parts, width=_WIDTH, height=_HEIGHT, label="Accuracy by problem length").replace(
        "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1
    )


def _panel(cells: Sequence[Mapping[str, Any]], world: str, arms: Sequence[str], *, frame: Frame) -> str:
    lengths = sorted({int(length) for cell in cells for length in cell["by_length"]})
    x = Scale(lengths[0] - 0.5, lengths[-1] + 0.5, frame.left, frame.right)
    y = Scale(0, 1, frame.bottom, frame.top)
    middle = (frame.left + frame.right) / 2
    parts = [y_axis(y, frame), text(frame.left, frame.top - 14, world, css="name")]
    parts += [text(x(n), frame.bottom + 16, str(n), css="tick", anchor="middle") for n in lengths]
    parts.append(text(middle, frame.bottom + 34, "steps in the problem", css="axis", anchor="middle"))
    if world in _CHANCE:
        at = y(_CHANCE[world])
        parts.append(line(frame.left, at, frame.right, at, css="chance"))
    for index, arm in enumerate(arms):
        shift = (index - (len(arms) - 1) / 2) * 6
        counts = [_counts([cell for cell in cells if cell["arm"] == arm], length) for length in lengths]
        xs = [x(length) + shift for length in lengths]
        parts.append(_series(counts, xs, y=y, index=index))
    return "".join(parts)


def _counts(cells: Sequence[Mapping[str, Any]], length: int) -> tuple[int, int]:
    found = [cell["by_length"][str(length)] for cell in cells if str(length) in cell["by_length"]]
    return sum(one["correct"] for one in found), sum(one["n"] for one in found)


def _series(counts: Sequence[tuple[int, int]], xs: Sequence[float], *, y: Scale, index: int) -> str:
    known = [(x, right, n) for x, (right, n) in zip(xs, counts, strict=True) if n]
    parts = [path([(x, y(right / n)) for x, right, n in known], css="trend")]
    for x, right, n in known:
        interval = wilson(right, n)
        parts.append(line(x, y(interval.low), x, y(interval.high), css="whisker"))
        parts.append(marker(x, y(right / n), shape=index, radius=4))
    return group(parts, css=f"s{index % 3}")


def _key(arm: str, index: int) -> str:
    left = _key_left(index)
    mark = group([marker(left, _HEIGHT - 12, shape=index, radius=4)], css=f"s{index % 3}")
    return mark + text(left + 12, _HEIGHT - 8, arm.replace("_", " "), css="tick")


def _key_left(index: int) -> float:
    return _LEFT + 8 + index * 200
