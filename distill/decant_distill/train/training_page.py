"""A run as a page that stands alone: loss, gradient, learning rate and speed by step, and its events."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from decant_distill.train.checkpoints import RunProgress

_STYLE = Path(__file__).with_name("training.css")
_WIDTH, _HEIGHT = 560.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 552.0, 12.0, 212.0
# More points than this cannot be told apart at the width that a curve is drawn in.
_MOST_POINTS = 240
_MARKED = ("rewind", "resumed", "stopped")


@dataclass(frozen=True, slots=True)
class Curve:
    """Values of consecutive steps, the first one being step 1, with dots of other values at some steps."""

    title: str
    words: str
    values: Sequence[float]
    dots: Sequence[tuple[int, float]] = ()
    logarithmic: bool = False


def training_page(
    name: str, progress: RunProgress, *, tokens: Sequence[int], events: Sequence[Mapping[str, Any]]
) -> str:
    """The page of a run so far; `tokens` has the number of each step's batch.

    Nothing is loaded from elsewhere and nothing runs: it can be mailed.
    """
    marks = [(int(event.get("to_step", event["step"])), str(event["event"])) for event in events]
    marks = [(step, kind) for step, kind in marks if kind in _MARKED]
    figures = "".join(_figure(curve, marks) for curve in _curves(progress, tokens))
    spent = sum(tokens[: progress.step])
    lead = f"{progress.step:,} steps, {spent:,} tokens, {progress.wall_s:,.0f} s"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Training of {escape(name)} · Decant</title>"
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style></head>\n<body><main>"
        f"<h1>Training of {escape(name)}</h1><p>{lead}</p>"
        f'<div class="figures">{figures}</div>{_event_table(events)}</main></body></html>\n'
    )


def _curves(progress: RunProgress, tokens: Sequence[int]) -> list[Curve]:
    speeds = [
        count / seconds for count, seconds in zip(tokens, progress.seconds, strict=False) if seconds > 0
    ]
    judged = [(one.step, one.loss) for one in progress.judgements]
    right = [(one.step, one.accuracy) for one in progress.judgements if one.accuracy is not None]
    curves = [
        Curve(
            "Loss",
            "nats per token of the completion" + ("; dots: on held-out rows" if judged else ""),
            progress.losses,
            judged,
        ),
        Curve("Gradient norm", "before it is clipped, logarithmic", progress.norms, logarithmic=True),
        Curve("Learning rate", "of the first group of weights", progress.rates),
        Curve("Tokens per second", "without padding, checkpoints and judging aside", speeds),
    ]
    if right:
        curves.append(Curve("Accuracy", "share of right greedy answers to held-out rows", (), right))
    return [curve for curve in curves if curve.values or curve.dots]


def _figure(curve: Curve, marks: Sequence[tuple[int, str]]) -> str:
    return (
        f"<figure><h2>{escape(curve.title)}</h2><p>{escape(curve.words)}</p>{_drawing(curve, marks)}</figure>"
    )


def _drawing(curve: Curve, marks: Sequence[tuple[int, str]]) -> str:
    seen = [*curve.values, *(value for _, value in curve.dots)]
    shown = [value for value in seen if math.isfinite(value) and (value > 0 or not curve.logarithmic)]
    if not shown:
        return "<p>nothing to draw yet</p>"
    steps = max(len(curve.values), *(step for step, _ in curve.dots), 2) if curve.dots else len(curve.values)
    bend = math.log10 if curve.logarithmic else float
    low, high = bend(min(shown)), bend(max(shown))
    if not curve.logarithmic:
        low = min(low, 0.0)
    high = high if high > low else low + 1.0

    def x(step: float) -> float:
        return _LEFT + (step - 1) / max(steps - 1, 1) * (_RIGHT - _LEFT)

    def y(value: float) -> float:
        bent = bend(max(value, 10**low)) if curve.logarithmic else value
        return _BOTTOM - (min(max(bent, low), high) - low) / (high - low) * (_BOTTOM - _TOP)

    parts = [*_axes(low, high, steps, logarithmic=curve.logarithmic)]
    for step, kind in marks:
        if 1 <= step <= steps:
            parts.append(
                f'<line class="event" x1="{x(step):.1f}" x2="{x(step):.1f}" y1="{_TOP}" y2="{_BOTTOM}">'
                f"<title>{escape(kind)} at step {step}</title></line>"
            )
    parts += _line([(x(at), y(lo), y(mean), y(hi)) for at, lo, mean, hi in _thinned(curve.values)])
    parts += [f'<circle class="dev" cx="{x(s):.1f}" cy="{y(v):.1f}" r="3.5"/>' for s, v in curve.dots]
    label = f"{curve.title} over {steps} steps, from {min(shown):.3g} to {max(shown):.3g}"
    frame = f'viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(label)}"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


def _axes(low: float, high: float, steps: int, *, logarithmic: bool) -> list[str]:
    parts: list[str] = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        height = _BOTTOM - share * (_BOTTOM - _TOP)
        bent = low + share * (high - low)
        value = 10**bent if logarithmic else bent
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_BOTTOM + 20}">step 1</text>')
    parts.append(f'<text x="{_RIGHT}" y="{_BOTTOM + 20}" text-anchor="end">{steps:,}</text>')
    return parts


def _line(points: Sequence[tuple[float, float, float, float]]) -> list[str]:
    """A band from the lowest to the highest value of each stretch, and a line through the means."""
    if not points:
        return []
    upper = [f"{at:.1f} {top:.1f}" for at, _, _, top in points]
    lower = [f"{at:.1f} {bottom:.1f}" for at, bottom, _, _ in reversed(points)]
    middle = [f"{at:.1f} {mean:.1f}" for at, _, mean, _ in points]
    return [
        f'<path class="band" d="M{" L".join([*upper, *lower])} Z"/>',
        f'<path class="curve" d="M{" L".join(middle)}"/>',
    ]


def _thinned(values: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """(step, lowest, mean, highest) of stretches of equal length; what is not finite is left out."""
    stretch = max(1, -(-len(values) // _MOST_POINTS))
    found: list[tuple[float, float, float, float]] = []
    for start in range(0, len(values), stretch):
        part = [value for value in values[start : start + stretch] if math.isfinite(value)]
        if part:
            found.append((start + (len(part) + 1) / 2, min(part), sum(part) / len(part), max(part)))
    return found


def _event_table(events: Sequence[Mapping[str, Any]]) -> str:
    if not events:
        return ""
    lines = [
        f"<tr><td>{escape(str(event['at']))}</td><td>{event['step']}</td><td>{escape(str(event['event']))}</td>"
        f"<td>{escape(_details(event))}</td></tr>"
        for event in events
    ]
    head = "<thead><tr><th>when (UTC)</th><th>step</th><th>event</th><th>details</th></tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _details(event: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in event.items() if name not in ("at", "event", "step")}
    return ", ".join(
        f"{name.replace('_', ' ')} {_number(value) if isinstance(value, float) else value}"
        for name, value in shown.items()
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
