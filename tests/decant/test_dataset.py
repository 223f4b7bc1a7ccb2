"""A bad line is kept with its number and reason; the rest goes on."""

import sys
from pathlib import Path

import pytest

from decant.dataset import BadRow, Row, read_good_rows, read_rows
from decant.errors import DataError, MissingExtraError


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


def test_csv_rows_have_a_header_and_bad_ones_are_numbered(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'\xef\xbb\xbfid,text\n1,"two\nlines"\n2\n3,\xff\n\n4,caf\xc3\xa9\n')
    rows = list(read_rows(file, required=["text"]))
    assert [(row.line, row.fields) for row in rows if isinstance(row, Row)] == [
        (2, {"id": "1", "text": "two\nlines"}),
        (7, {"id": "4", "text": "café"}),
    ]
    assert [(row.line, row.reason) for row in rows if isinstance(row, BadRow)] == [
        (4, "1 cells under 2 column names"),
        (5, "not UTF-8"),
    ]


def test_a_tsv_without_the_field_says_so(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text("id\tbody\n1\tx, y\n")
    (row,) = read_rows(file, required=["text"])
    assert row == BadRow(2, "lacks the field text", "1,x, y")


def test_a_header_with_a_repeated_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,id\n1,2\n")
    with pytest.raises(DataError, match="name each column once"):
        list(read_rows(tmp_path / "a.csv"))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'decant\[parquet\]'"):
        list(read_rows(tmp_path / "a.parquet"))


def test_parquet_is_read_where_pyarrow_is(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    nested = {"text": [f"t{n}" for n in range(2500)], "n": [*range(2499), None], "tags": [["a", "b"]] * 2500}
    parquet.write_table(pyarrow.table(nested), tmp_path / "many.parquet")
    rows = list(read_rows(tmp_path / "many.parquet", required=["text"]))
    assert (len(rows), rows[1500]) == (2500, Row(1501, {"text": "t1500", "n": 1500, "tags": ["a", "b"]}))
    assert rows[-1] == Row(2500, {"text": "t2499", "n": None, "tags": ["a", "b"]})
    assert isinstance(next(iter(read_rows(tmp_path / "many.parquet", required=["gold"]))), BadRow)
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == [Row(1, {"text": "a"}), Row(2, {"text": "b"})]


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"a\.parquet: .*is it a whole file"):
        list(read_rows(tmp_path / "a.parquet"))
