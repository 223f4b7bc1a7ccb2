"""Hugging Face dataset folders: as `save_to_disk` writes them, and as they lie on the hub."""

import json
from pathlib import Path
from typing import Any

import pytest

from decant.dataset import BadRow, Row, read_rows
from decant.errors import DataError

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow, which reads Arrow and Parquet, is missing")


def texts(path: Path) -> list[tuple[int, Any]]:
    return [(row.line, row.fields["text"] if isinstance(row, Row) else row.reason) for row in read_rows(path)]


def saved(folder: Path, *shards: list[str], **state: Any) -> Path:
    """What `Dataset.save_to_disk` leaves."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05}-of-{len(shards):05}.arrow" for n in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        table = pyarrow.table({"text": rows})
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table)
    listed = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": listed, **state}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_saved_dataset_is_read_shard_by_shard(tmp_path: Path) -> None:
    assert texts(saved(tmp_path / "d", ["a", "b"], ["c"])) == [(1, "a"), (2, "b"), (3, "c")]


def test_a_saved_dict_of_splits_asks_for_one(tmp_path: Path) -> None:
    for split in ("train", "test"):
        saved(tmp_path / "d" / split, [split])
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert texts(tmp_path / "d" / "test") == [(1, "test")]
    with pytest.raises(DataError, match=r"several splits; give one of .*d/test, .*d/train"):
        texts(tmp_path / "d")


def test_a_selection_that_was_not_written_out_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", ["a"], _indices_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match="flatten_indices"):
        texts(folder)


def test_a_lost_or_broken_shard_is_one_line(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", ["a"], ["b"])
    shard = folder / "data-00001-of-00002.arrow"
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(DataError, match="is it a whole file"):
        texts(folder)
    shard.unlink()
    with pytest.raises(DataError, match="lacks the data files data-00001"):
        texts(folder)


def test_the_hubs_layout_has_its_splits_in_names_or_folders(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    data = tmp_path / "hub" / "data"
    data.mkdir(parents=True)
    (tmp_path / "hub" / "README.md").write_text("a card")
    for number, rows in enumerate((["a"], ["b", "c"])):
        parquet.write_table(pyarrow.table({"text": rows}), data / f"train-0000{number}-of-00002.parquet")
    (data / "test.jsonl").write_text('{"text": "t"}\n{half\n')
    assert texts(tmp_path / "hub" / "train") == [(1, "a"), (2, "b"), (3, "c")]
    (good, bad) = read_rows(tmp_path / "hub" / "test")
    assert (isinstance(good, Row), isinstance(bad, BadRow), bad.line) == (True, True, 2)
    with pytest.raises(DataError, match="no split dev; it has test, train"):
        texts(tmp_path / "hub" / "dev")


def test_a_folder_of_plain_files_is_one_split(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "two.jsonl").write_text('\n{"text": "b"}\n')
    assert texts(tmp_path) == [(1, "a"), (3, "b")]


def test_a_folder_without_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dataset"):
        texts(tmp_path)
    with pytest.raises(DataError, match="cannot read the dataset"):
        texts(tmp_path / "no-such-file")
