"""A self-contained page: no scripts, nothing loaded, readable in light and dark."""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

_STYLE = Path(__file__).with_name("ledger.css")


def page(title: str, body: Iterable[str]) -> str:
    """The whole page as HTML; `body` holds its parts as HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · Decant</title>"
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def block(heading: str, words: str, content: str) -> str:
    """A section of the page."""
    return f'<section class="block"><h2>{escape(heading)}</h2><p>{escape(words)}</p>{content}</section>'


def figure(heading: str, words: str, plot: str, *, legend: str = "", css: str = "") -> str:
    """A plot with its heading; nothing where there is no plot."""
    return f'<figure class="{css}"><h2>{heading}</h2><p>{words}</p>{legend}{plot}</figure>' if plot else ""


def definitions(entries: Mapping[str, str]) -> str:
    """A list of names and what they are."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries.items())
    return f"<dl>{lines}</dl>"
