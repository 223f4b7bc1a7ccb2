"""Hugging Face dataset folders as files to read: what `save_to_disk` writes, and the layout of the hub.

A split is named like a folder in it, `my-dataset/train`, whether it is one or not.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from decant.errors import DataError

_STATE = "state.json"
_SPLITS = "dataset_dict.json"
_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".arrow")
# What the hub takes for a split's name in a file's or folder's name.
_ALIASES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
_SHARD = re.compile(r"(?P<name>.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")


def dataset_files(path: Path) -> list[Path] | None:
    """The files of a dataset folder or of one of its splits, in order; None for a path that is neither.

    DataError for a folder of several splits, which it names, and for one that holds no data.
    """
    if path.is_dir():
        return _files_of(path)
    if not path.exists() and path.parent.is_dir() and path.suffix == "":
        splits = _hub_splits(path.parent)
        if path.name in splits:
            return splits[path.name]
        if len(splits) > 1 or (splits and "train" not in splits):
            raise DataError(f"{path.parent}: no split {path.name}; it has {', '.join(splits)}")
    return None


def _files_of(folder: Path) -> list[Path]:
    if (folder / _SPLITS).is_file():
        names = [str(name) for name in _read(folder / _SPLITS).get("splits", [])]
        if len(names) != 1:
            raise DataError(f"{folder}: several splits; give one of {_choices(folder, names)}")
        folder /= names[0]
    if (folder / _STATE).is_file():
        return _arrow_files(folder)
    splits = _hub_splits(folder)
    if len(splits) > 1:
        raise DataError(f"{folder}: several splits; give one of {_choices(folder, list(splits))}")
    if not splits:
        raise DataError(f"{folder}: no dataset; it needs .parquet, .jsonl, .csv or .arrow files")
    return next(iter(splits.values()))


def _arrow_files(folder: Path) -> list[Path]:
    """The files that `save_to_disk` lists; a selection that was not written out would read other rows."""
    state = _read(folder / _STATE)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(f"{folder}: a selection of rows; call flatten_indices() and save it again")
    listed = cast(Sequence[Mapping[str, Any]], state.get("_data_files") or [])
    files = [folder / str(entry["filename"]) for entry in listed]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise DataError(
            f"{folder}: lacks the data files {', '.join(missing) or 'that it lists'}; save it again"
        )
    return files


def _hub_splits(folder: Path) -> dict[str, list[Path]]:
    """The files of each split: by folder, else by the names of the files in the folder or in its `data`."""
    found: dict[str, list[Path]] = {}
    for home in (folder, folder / "data"):
        for file in _data_files(home):
            found.setdefault(_split_of(file), []).append(file)
        for inner in sorted(home.iterdir()) if home.is_dir() else ():
            if inner.name in _ALIASES and (files := list(_data_files(inner))):
                found.setdefault(_ALIASES[inner.name], []).extend(files)
    return found


def _data_files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        names = {_STATE, _SPLITS, "dataset_info.json", "dataset_infos.json"}
        files = (file for file in sorted(folder.iterdir()) if file.is_file() and file.name not in names)
        yield from (file for file in files if file.suffix.lower() in _SUFFIXES and file.name[0] not in "._")


def _split_of(file: Path) -> str:
    shard = _SHARD.fullmatch(file.stem)
    if shard:
        return _ALIASES.get(shard["name"], shard["name"])
    words = [word for word in re.split(r"[^A-Za-z]+", file.stem) if word in _ALIASES]
    return _ALIASES[words[0]] if words else "train"


def _choices(folder: Path, names: list[str]) -> str:
    return ", ".join(str(folder / name) for name in sorted(names)) or "its split folders"


def _read(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); save the dataset again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object; save the dataset again")
    return cast(dict[str, Any], content)
