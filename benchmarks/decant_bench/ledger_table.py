"""The ledger in the terminal: quality above, latency and cost below; plain where there is no terminal."""

import sys
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from decant_bench import ledger_cells as cells
from decant_bench.ledger_cells import Cell
from decant_bench.ledger_document import Ledger
from decant_bench.ledger_rows import LedgerRow

_WIDTH = 120
_ALARMS = ("LOST", "BROKEN", "never")

Columns = Sequence[tuple[str, Callable[[LedgerRow], Cell]]]

_QUALITY: Columns = (
    ("stage\nengine", cells.stage_cell),
    ("accuracy, %\n95% interval", lambda row: cells.share_cell(row.accuracy)),
    ("agrees with\nteacher", lambda row: cells.share_cell(row.agreement)),
    ("paired change, points\n95% interval", lambda row: cells.difference_cell(row.difference)),
    ("gained, lost\nMcNemar", cells.change_cell),
    ("allowance\npoints", cells.allowance_cell),
    ("golden\nprompts", cells.golden_cell),
    ("completed\nrequests", cells.requests_cell),
)
_SPEED: Columns = (
    ("stage\nengine", cells.stage_cell),
    ("first token, ms\np50 / p95 / p99", lambda row: cells.latency_cell(row, "ttft")),
    ("end to end, ms\np50 / p95 / p99", lambda row: cells.latency_cell(row, "e2e")),
    ("tokens\nout", cells.tokens_cell),
    ("on\ndisk", cells.size_cell),
    ("requests\nper s", cells.capacity_cell),
    ("$ per 1,000\nserving + prepared", cells.cost_cell),
    ("break-even\nrequests", cells.break_even_cell),
)


def print_ledger(ledger: Ledger, *, console: Console | None = None) -> None:
    """Prints the ledger; at most 120 columns wide, and exactly that where the output is no terminal."""
    if console is None:
        console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    console.print(Text(f"{ledger.title}: {_scope(ledger)}", style="bold"))
    console.print(_table(ledger, _QUALITY))
    console.print(_table(ledger, _SPEED))
    console.print(Text(_legend(ledger), style="dim"))
    for note in ledger.notes:
        console.print(Text(f"note: {note}"))
    for loss in ledger.losses:
        console.print(Text(f"LOST: {loss.sentence}", style="bold red"))
    if not ledger.losses and any(row.verdict for row in ledger.rows):
        console.print(Text("No stage is shown to lose more than its allowance.", style="green"))


def _scope(ledger: Ledger) -> str:
    graded = f", {ledger.graded:,} of them with gold" if ledger.graded != ledger.requests else ""
    return f"{len(ledger.rows)} stages on the same {ledger.requests:,} requests{graded}"


def _table(ledger: Ledger, columns: Columns) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for number, (heading, _) in enumerate(columns):
        table.add_column(heading, justify="left" if number == 0 else "right", overflow="fold")
    for row in ledger.rows:
        table.add_row(*(_text(cell_of(row)) for _, cell_of in columns))
    return table


def _text(cell: Cell) -> Text:
    value = Text(cell.value, style="bold red" if cell.value in _ALARMS else "")
    return value if not cell.detail else Text.assemble(value, "\n", (cell.detail, "dim"))


def _legend(ledger: Ledger) -> str:
    parts = [
        "Latency counts from when a request was due (response); under it from when it was sent (service)."
    ]
    if any(row.cost.preparation_usd is not None for row in ledger.rows):
        parts.append(f"Prepared: labeling and training spread over {ledger.volume:,} requests.")
    return " ".join(parts)
