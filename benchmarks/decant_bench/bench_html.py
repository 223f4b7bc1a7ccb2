"""A run as one self-contained page."""

from collections.abc import Sequence

from decant_bench.bench_result import BenchResult
from decant_bench.records import Record


def bench_page(result: BenchResult, records: Sequence[Record]) -> str:
    """The whole page as HTML."""
    return result.name
