"""The ledger's cells as text, a value with a smaller line under it, once for the terminal and the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from decant.timing import Summary
from decant_bench import number_text as text
from decant_bench.ledger_rows import LedgerRow
from decant_bench.number_text import UNKNOWN
from decant_bench.quality import Difference, Proportion

PERCENTILES = ("p50", "p95", "p99")


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell says, and the detail under it."""

    value: str
    detail: str = ""


def stage_cell(row: LedgerRow) -> Cell:
    """The stage and its engine."""
    return Cell(row.stage, row.engine or "engine unknown")


def share_cell(share: Proportion | None) -> Cell:
    """A proportion and its interval."""
    if share is None:
        return Cell(UNKNOWN)
    return Cell(text.percent(share.value), f"{text.percent_range(share.interval)}")


def difference_cell(found: Difference | None) -> Cell:
    """A paired difference in points, and its interval."""
    if found is None:
        return Cell(UNKNOWN)
    return Cell(f"{text.points(found.paired.mean)} to {found.to}", text.points_range(found.paired.interval))


def against_teacher_cell(found: Difference | None) -> Cell:
    """The paired difference to the teacher in points, and its interval."""
    if found is None:
        return Cell(UNKNOWN)
    return Cell(text.points(found.paired.mean), text.points_range(found.paired.interval))


def change_cell(row: LedgerRow) -> Cell:
    """How many requests changed, and the p-value of that."""
    if row.difference is None:
        return Cell(UNKNOWN)
    paired = row.difference.paired
    changed = f"+{paired.gained} {text.MINUS}{paired.lost}"
    return Cell(changed, "" if paired.p_value is None else text.p_value(paired.p_value))


def allowance_cell(row: LedgerRow) -> Cell:
    """The verdict on the stage's allowance."""
    if row.verdict is None or row.allowance is None:
        return Cell(UNKNOWN)
    words = {"within": "kept", "unclear": "unclear", "lost": "LOST"}
    return Cell(words[row.verdict], f"may lose {100 * row.allowance:.1f}")


def golden_cell(row: LedgerRow) -> Cell:
    """The golden-prompt check."""
    if row.golden is None:
        return Cell(UNKNOWN)
    if row.golden.kinds:
        return Cell("BROKEN", ", ".join(row.golden.kinds))
    return Cell("same", f"{row.golden.checked} prompts")


def requests_cell(row: LedgerRow) -> Cell:
    """How many requests completed, and how many failed."""
    failed = row.requests.failed
    return Cell(f"{row.requests.completed:,}", f"{failed:,} failed" if failed else "none failed")


def latency_cell(row: LedgerRow, word: str) -> Cell:
    """p50, p95, p99 of `ttft` or `e2e` in milliseconds: response latency, and service latency under it."""
    response, service = row.latency[f"{word}_response_s"], row.latency[f"{word}_service_s"]
    if not response["n"]:
        return Cell(UNKNOWN)
    return Cell(_percentiles(response), _percentiles(service))


def tokens_cell(row: LedgerRow) -> Cell:
    """Mean completion tokens."""
    return Cell(UNKNOWN if row.tokens_out_mean is None else f"{row.tokens_out_mean:.1f}")


def size_cell(row: LedgerRow) -> Cell:
    """Size of the weights on disk."""
    return Cell(UNKNOWN if row.size_bytes is None else text.size(row.size_bytes))


def capacity_cell(row: LedgerRow) -> Cell:
    """Requests per second when full."""
    return Cell(UNKNOWN if row.requests_per_s is None else text.significant(row.requests_per_s))


def cost_cell(row: LedgerRow) -> Cell:
    """$ per 1,000 requests, and its serving and preparation parts."""
    cost = row.cost
    if cost.serving_usd_per_1000 is None or cost.total_usd_per_1000 is None:
        return Cell(UNKNOWN)
    prepared = (
        ""
        if cost.amortised_usd_per_1000 is None
        else f" + {text.significant(cost.amortised_usd_per_1000, 2)}"
    )
    return Cell(text.usd(cost.total_usd_per_1000), f"{text.usd(cost.serving_usd_per_1000)}{prepared}")


def break_even_cell(row: LedgerRow) -> Cell:
    """The volume from which the stage is cheaper than the teacher, and what must be earned back."""
    if row.break_even_requests is None:
        return Cell(UNKNOWN)
    prepared = text.usd(row.cost.preparation_usd or 0.0)
    if row.break_even_requests == "never":
        return Cell("never", f"{prepared} spent")
    return Cell(text.requests(row.break_even_requests), f"{prepared} spent")


def _percentiles(summary: Summary) -> str:
    values: Sequence[float | None] = [summary["p50"], summary["p95"], summary["p99"]]
    return " / ".join(UNKNOWN if value is None else text.milliseconds(value) for value in values)
