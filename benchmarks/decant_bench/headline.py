"""The ledger in six numbers: the stage that goes into use beside the teacher."""

from collections.abc import Iterator
from dataclasses import dataclass

from decant_bench import number_text as words
from decant_bench.ledger_document import Ledger
from decant_bench.ledger_rows import LedgerRow


@dataclass(frozen=True, slots=True)
class Tile:
    """One number, what it is, and what it stands beside."""

    label: str
    number: str
    beside: str


def headline(ledger: Ledger) -> list[Tile]:
    """The numbers that are known for both; none when the teacher itself is what goes into use."""
    served, teacher = ledger.row(ledger.served), ledger.row(ledger.teacher)
    return [] if served is teacher else [*_quality(served, teacher), *_economy(served, teacher)]


def _quality(served: LedgerRow, teacher: LedgerRow) -> Iterator[Tile]:
    if served.accuracy is not None and teacher.accuracy is not None:
        change = served.difference_to_teacher
        points = f" ({words.points(change.paired.mean)})" if change is not None else ""
        beside = f"teacher {words.percent(teacher.accuracy.value)}{points}"
        yield Tile("accuracy", words.percent(served.accuracy.value), beside)
    if served.agreement is not None:
        beside = f"with the teacher, n {served.agreement.n:,}"
        yield Tile("agreement", words.percent(served.agreement.value), beside)


def _economy(served: LedgerRow, teacher: LedgerRow) -> Iterator[Tile]:
    mine, theirs = (row.latency["e2e_response_s"]["p50"] for row in (served, teacher))
    if mine and theirs:
        engines = "" if served.engine == teacher.engine else ", on another engine"
        beside = f"teacher {words.duration(theirs)}{engines}"
        yield Tile("end to end, p50", words.duration(mine), beside)
    if served.size_bytes and teacher.size_bytes:
        shrink = words.ratio(teacher.size_bytes / served.size_bytes)
        beside = f"teacher {words.size(teacher.size_bytes)} ({shrink})"
        yield Tile("weights on disk", words.size(served.size_bytes), beside)
    costs = served.cost.total_usd_per_1000, teacher.cost.total_usd_per_1000
    if costs[0] is not None and costs[1] is not None:
        yield Tile("$ per 1,000, all in", words.usd(costs[0]), f"teacher {words.usd(costs[1])}")
    if served.break_even_requests is not None:
        volume = served.break_even_requests
        number = "never" if volume == "never" else words.requests(float(volume))
        spent = words.usd(served.cost.preparation_usd or 0.0)
        yield Tile("break-even", number, f"requests, {spent} spent")
