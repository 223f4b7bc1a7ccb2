"""`decant ledger`: what each stage kept and lost on the same requests, as a table, as JSON and as a page."""

from collections.abc import Sequence

from decant.errors import GateError
from decant.files import write_json, write_text
from decant_bench.ledger_config import LedgerConfig
from decant_bench.ledger_document import Loss, build_ledger
from decant_bench.predictions import read_predictions

CONFIG = LedgerConfig


def run(config: LedgerConfig) -> None:
    """Writes ledger.json and ledger.html, prints the table, and with `gate` raises GateError for a loss."""
    from decant_bench.ledger_html import ledger_page
    from decant_bench.ledger_table import print_ledger

    folders = {stage.name: read_predictions(stage.eval) for stage in config.stages}
    ledger, samples = build_ledger(config, folders)
    json_file, page_file = config.output / "ledger.json", config.output / "ledger.html"
    write_json(json_file, ledger.to_json())
    write_text(page_file, ledger_page(ledger, samples))
    print_ledger(ledger)
    print(f"written to {json_file} and {page_file}")
    if config.gate:
        check_gate(ledger.losses)


def check_gate(losses: Sequence[Loss]) -> None:
    """GateError that names every stage that lost more than its allowance."""
    if losses:
        sentences = "; ".join(loss.sentence for loss in losses)
        raise GateError(f"{sentences}; improve the stage, or raise its allowance if the loss is acceptable")
