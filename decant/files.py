"""Writing files so that a half-written one is never taken for a whole one: aside, fsync, rename."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` (UTF-8) in one step."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` by `value` as indented JSON; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Replaces `path` by one JSON line per row and returns how many there were."""
    count = 0
    with file_aside(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")
            count += 1
    return count


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one step."""
    with file_aside(path) as file:
        file.write(content)


@contextmanager
def file_aside(path: Path) -> Generator[IO[bytes]]:
    """Yields an open file that takes the place of `path` on success, synced, and vanishes on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


@contextmanager
def folder_aside(target: Path) -> Generator[Path]:
    """Yields an empty folder beside `target` that takes its place on success and vanishes on failure.

    Every file in it is fsynced before the rename. Leftovers of killed runs are removed first.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.aside-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.aside-", dir=target.parent))
    try:
        yield aside
        for file in _files(aside):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        aside.chmod(0o755)
        if target.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.aside-", dir=target.parent))
            Path(target).replace(retired / "old")
            Path(aside).replace(target)
            shutil.rmtree(retired)
        else:
            Path(aside).replace(target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _fsync_folder(target.parent)


def sha256_file(path: Path) -> str:
    """The hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_path(path: Path) -> str:
    """The hex SHA-256 of a file, or of a folder's sorted relative names and contents."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
