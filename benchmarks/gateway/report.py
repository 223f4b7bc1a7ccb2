"""Rounds as numbers with their spread, and as files: JSON for machines, Markdown for people."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from decant.files import write_json, write_text
from decant.hardware import provenance
from decant.timing import percentile
from gateway.client import Round

Rounds = Mapping[str, Sequence[Round]]


def latency_row(rounds: Rounds, side: str, baseline: str) -> dict[str, Any]:
    """A side's times to first token and to the end, and what it adds to the baseline's, in milliseconds.

    Rounds in which nothing was answered are counted as failed and have no times.
    """
    row: dict[str, Any] = {"side": side, **_counts(rounds[side])}
    pairs = [(a, b) for a, b in zip(rounds[side], rounds[baseline], strict=True) if a.good and b.good]
    if not pairs:
        return row
    for name, value in (("ttft", _ttft_ms), ("e2e", _e2e_ms)):
        for q in (50, 99):
            own, base = ([percentile(value(one), q) for one in ones] for ones in zip(*pairs, strict=True))
            row[f"{name}_p{q}_ms"] = percentile(own, 50)
            row[f"added_{name}_p{q}_ms"] = spread([a - b for a, b in zip(own, base, strict=True)])
    return row


def rate_row(rounds: Rounds, side: str, baseline: str, *, unit: str) -> dict[str, Any]:
    """A side's rate, `unit` per second, and its ratio to the baseline's, round by round."""
    rate: Callable[[Round], float] = _requests_per_s if unit == "requests" else _tokens_per_s
    own, base = [rate(one) for one in rounds[side]], [rate(one) for one in rounds[baseline]]
    ratios = [a / b for a, b in zip(own, base, strict=True) if b > 0]
    return {
        "side": side,
        **_counts(rounds[side]),
        f"{unit}_per_s": spread(own),
        "ratio": spread(ratios) if ratios else None,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range over rounds."""
    return {"median": percentile(values, 50), "min": min(values), "max": max(values)}


def write(
    output: Path, name: str, *, title: str, setup: Mapping[str, Any], tables: Mapping[str, Any]
) -> None:
    """Writes NAME.json and NAME.md, with the machine, versions, commit and command."""
    origin = provenance(Path(__file__).parent)
    write_json(output / f"{name}.json", {"title": title, "setup": setup, "tables": tables, **origin})
    parts = [f"# {title}", _setup_line(setup, origin)]
    for about, rows in tables.items():
        parts += [f"## {about}", _table(rows)]
    write_text(output / f"{name}.md", "\n\n".join(parts) + "\n")


def _counts(rounds: Sequence[Round]) -> dict[str, int]:
    asked = sum(len(one.answered) for one in rounds)
    return {"rounds": len(rounds), "n": asked, "failed": asked - sum(len(one.good) for one in rounds)}


def _ttft_ms(one: Round) -> list[float]:
    return [answer.ttft_s * 1000 for answer in one.good if answer.ttft_s is not None]


def _e2e_ms(one: Round) -> list[float]:
    return [answer.e2e_s * 1000 for answer in one.good]


def _requests_per_s(one: Round) -> float:
    return one.requests_per_s


def _tokens_per_s(one: Round) -> float:
    return one.tokens_per_s


def _setup_line(setup: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    machine = origin["hardware"]
    told = ", ".join(f"{name} {value}" for name, value in setup.items())
    return f"{machine['cpu']}, {machine['cores']} cores; commit {origin['commit']}; {told}."


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_cell(row.get(name)) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.3g} ({value['min']:.3g} to {value['max']:.3g})"
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
