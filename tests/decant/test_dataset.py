"""A bad line is kept with its number and reason; the rest goes on."""

from pathlib import Path

import pytest

from decant.dataset import BadRow, Row, read_good_rows, read_rows
from decant.errors import DataError


def test_bad_lines_are_numbered_and_the_rest_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "a"}\n\n{"text": \n[1]\n{"other": 1}\n"\xff"\n{"text": "b"}')
    rows = list(read_rows(file, required=["text"]))
    assert [row.line for row in rows if isinstance(row, Row)] == [1, 7]
    bad = {row.line: row.reason for row in rows if isinstance(row, BadRow)}
    assert list(bad) == [3, 4, 5, 6]
    assert bad[4] == "not a JSON object but list"
    assert bad[5] == "lacks the field text"
    assert bad[6] == "not UTF-8"


def test_where_no_bad_line_is_allowed_the_first_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\nnope\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not JSON"):
        read_good_rows(file)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the dataset"):
        list(read_rows(tmp_path / "none.jsonl"))
