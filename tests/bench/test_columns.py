"""The columns that a run's numbers come from."""

import numpy as np
import pytest

from decant.timing import RequestTiming
from decant_bench.columns import RequestColumns, known
from decant_bench.records import Record


def record(number: int, *gaps_s: float, kind: str | None = None, text: str | None = None) -> Record:
    chunks_s = tuple(0.1 + float(sum(gaps_s[:place])) for place in range(len(gaps_s) + 1))
    timing = RequestTiming(
        request_id=f"r{number}",
        actual_s=float(number),
        ttft_s=None if kind else 0.1,
        e2e_s=None if kind else chunks_s[-1],
        chunk_times_s=() if kind else chunks_s,
        completion_tokens=None if kind else len(chunks_s),
        error_kind=kind,
    )
    words = f"{kind} of {number}" if kind else None
    return Record(index=number, turn=0, timing=timing, text=text, error=words)


def test_records_that_came_in_any_order_stand_in_order_of_sending_each_with_its_gaps() -> None:
    columns = RequestColumns.of([record(2, 0.3), record(0, 0.1, 0.2), record(1), record(3, 0.4, 0.5)])

    assert columns.actual_s.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert columns.gap_s == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert columns.request_of_gap.tolist() == [0, 0, 2, 3, 3]
    picked = columns.pick(np.asarray([True, False, False, True]))
    assert picked.gap_s == pytest.approx([0.1, 0.2, 0.4, 0.5])
    assert len(columns.pick(np.asarray([], dtype=np.int64))) == 0


def test_failures_keep_their_kind_and_the_words_of_the_first_one_sent() -> None:
    columns = RequestColumns.of([record(3, kind="auth"), record(1, kind="auth"), record(2, kind="unsent")])

    assert (columns.ok.any(), columns.was_sent.tolist()) == (False, [True, False, True])
    assert columns.examples["auth"] == "auth of 1"


def test_an_answer_is_recounted_where_its_text_was_kept() -> None:
    records = [record(0, 0.1, text="one two"), record(1, 0.1, text="one"), record(2, 0.1)]

    def count(text: str) -> int:
        return len(text.split())

    assert known(RequestColumns.of(records, count=count).recount).tolist() == [0.0, 1.0]
    assert not len(known(RequestColumns.of(records).recount))
