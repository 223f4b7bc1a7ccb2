"""Files appear whole or not at all."""

import json
from pathlib import Path

import pytest

from decant.files import folder_aside, sha256_path, write_json, write_jsonl, write_text


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "rows.jsonl"
    write_text(target, "old")

    def rows() -> object:
        yield {"a": 1}
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError):
        write_jsonl(target, rows())  # type: ignore[arg-type]
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_nan_is_refused_rather_than_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_folder_takes_the_place_of_the_old_one_only_on_success(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text, fails in (("first", False), ("second", True), ("third", False)):
        try:
            with folder_aside(target) as aside:
                (aside / "weights").write_text(text)
                if fails:
                    raise OSError(28, "No space left on device")
        except OSError:
            assert (target / "weights").read_text() == "first"
    assert (target / "weights").read_text() == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_leftovers_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".model.aside-dead").mkdir()
    with folder_aside(tmp_path / "model") as aside:
        (aside / "a").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_hash_sees_names_and_contents(tmp_path: Path) -> None:
    for name, text in (("one", "x"), ("two", "x"), ("three", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    assert sha256_path(tmp_path / "one") == sha256_path(tmp_path / "two")
    assert sha256_path(tmp_path / "one") != sha256_path(tmp_path / "three")
    (tmp_path / "two" / "file").rename(tmp_path / "two" / "renamed")
    assert sha256_path(tmp_path / "one") != sha256_path(tmp_path / "two")


def test_jsonl_keeps_unicode_readable(tmp_path: Path) -> None:
    assert write_jsonl(tmp_path / "a.jsonl", [{"text": "é"}, {}]) == 2
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"text": "é"}'
    assert json.loads(lines[1]) == {}
