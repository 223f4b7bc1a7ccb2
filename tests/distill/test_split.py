"""A dataset is split by its texts: the same text never stands on two sides."""

import json
from pathlib import Path

import pytest

from decant.config import load_config
from decant.errors import ConfigError, DataError
from decant_distill.split import SplitConfig, run


def write(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def texts(path: Path) -> set[str]:
    return {" ".join(json.loads(line)["text"].split()).casefold() for line in path.read_text().splitlines()}


def config(tmp_path: Path, data: Path, **values: object) -> SplitConfig:
    given = {"data": data, "output": tmp_path / "out", "task": {"prompt": "{text}"}, **values}
    return load_config(SplitConfig, values=given)


def test_shares_are_met_and_equal_texts_stay_together(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"Row {number % 1500}" + " " * (number // 1500)}) for number in range(3000)]
    run(config(tmp_path, write(tmp_path / "a.jsonl", rows), parts={"train": 0.8, "test": 0.2}))
    train, test = texts(tmp_path / "out" / "train.jsonl"), texts(tmp_path / "out" / "test.jsonl")
    assert not train & test
    assert len(train) + len(test) == 1500
    assert 0.16 < len(test) / 1500 < 0.24


def test_a_row_added_moves_no_other_row(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"row {number}"}) for number in range(50)]
    run(config(tmp_path, write(tmp_path / "a.jsonl", rows)))
    before = (tmp_path / "out" / "test.jsonl").read_text()
    run(config(tmp_path, write(tmp_path / "a.jsonl", [*rows, json.dumps({"text": "new"})])))
    after = (tmp_path / "out" / "test.jsonl").read_text()
    assert set(before.splitlines()) <= set(after.splitlines())


def test_a_bad_line_is_kept_for_the_labeler_to_report(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"row {number}"}) for number in range(50)]
    run(config(tmp_path, write(tmp_path / "a.jsonl", ["not json", *rows])))
    assert (tmp_path / "out" / "train.jsonl").read_text().startswith("not json\n")


def test_shares_that_do_not_sum_to_one_and_empty_parts_are_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", ['{"text": "only"}'])
    with pytest.raises(ConfigError, match=r"sum to 0\.9"):
        config(tmp_path, data, parts={"a": 0.5, "b": 0.4})
    with pytest.raises(DataError, match="would be empty"):
        run(config(tmp_path, data))
