"""`curation.html`: what each rule of curation dropped, to look through; one file that loads nothing."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from decant_distill.curate_account import RuleAccount

_STYLE = Path(__file__).with_name("curate_page.css")


def curation_page(report: Mapping[str, Any], accounts: Sequence[RuleAccount]) -> str:
    """The page as HTML."""
    rows_in, rows_out = report["rows_in"], report["rows_out"]
    prompts = f"{report['prompts_out']:,} of {report['prompts_in']:,} prompts"
    lead = f"{rows_out:,} of {rows_in:,} labels kept, {prompts}"
    body = [
        '<p class="brand">Decant</p><h1>What curation dropped</h1>',
        f'<p class="lead">{escape(str(report["labels"]))}: {escape(lead)}</p>',
        _right(report["right"]),
        _table(accounts, rows_in),
        *(_rule(account) for account in accounts if account.dropped),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>What curation dropped · Decant</title>"
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _right(right: Mapping[str, int]) -> str:
    if not right["answers_with_gold"]:
        return ""
    before = right["right"] / right["answers_with_gold"]
    after = right["kept_right"] / right["kept_with_gold"] if right["kept_with_gold"] else 0.0
    return (
        f'<p class="lead">Answers that equal gold: {before:.1%} of those that came, '
        f"{after:.1%} of those kept ({right['kept_right']:,} of {right['kept_with_gold']:,}).</p>"
    )


def _table(accounts: Sequence[RuleAccount], rows_in: int) -> str:
    left = rows_in
    lines: list[str] = []
    for account in accounts:
        left -= account.dropped
        name = f'<a href="#{escape(account.name)}">{escape(account.name)}</a>' if account.dropped else None
        share = account.dropped / rows_in if rows_in else 0.0
        lines.append(
            f"<tr><th>{name or escape(account.name)}<span>{escape(account.what)}</span></th>"
            f"<td>{account.dropped:,}</td><td>{share:.1%}</td><td>{left:,}</td>"
            f'<td class="bar"><meter max="{max(rows_in, 1)}" value="{account.dropped}"></meter></td></tr>'
        )
    head = "<tr><th>rule</th><th>dropped</th><th>of all</th><th>left after it</th><th></th></tr>"
    return f'<div class="card"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'


def _rule(account: RuleAccount) -> str:
    examples = "".join(_example(example) for example in account.spread)
    shown = len(account.spread)
    count = f"{account.dropped:,} dropped" + (f", {shown} of them here" if shown < account.dropped else "")
    return (
        f'<section id="{escape(account.name)}"><h2>{escape(account.name)}</h2>'
        f'<p class="lead">{escape(account.what)} · {count}</p>{examples}</section>'
    )


def _example(example: Mapping[str, Any]) -> str:
    where = f"line {example['line']}"
    if "id" in example:
        where += f" · {example['id']} · sample {example['sample']}"
    texts = [(name, example.get(name)) for name in ("prompt", "response", "gold", "text")]
    parts = "".join(f"<dt>{name}</dt><dd>{escape(str(text))}</dd>" for name, text in texts if text)
    reason = escape(str(example["reason"]))
    return (
        f"<details><summary><b>{reason}</b><span>{escape(where)}</span></summary><dl>{parts}</dl></details>"
    )
