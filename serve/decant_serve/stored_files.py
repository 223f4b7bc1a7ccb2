"""The files of the Files API: each its content and a JSON beside it, in a folder that outlives the server."""

import shutil
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

from decant.files import file_aside, write_json
from decant_serve.json_folder import read_objects

Clock = Callable[[], float]
_CONTENT = ".content"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file; `owner` is the name of the API key that it belongs to. Times are seconds since the epoch.

    `sequence` counts the files of a folder: it tells apart those of one second.
    """

    id: str
    owner: str | None
    filename: str
    purpose: str
    size_bytes: int
    created_at: int
    expires_at: int | None
    sequence: int = 0

    def to_wire(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """What is said of a file when it comes."""

    owner: str | None
    filename: str
    purpose: str
    expires_in_s: int | None = None


class FileBox:
    """Keeps files by id; what its owner does not know of is not there for others."""

    def __init__(self, folder: Path, *, clock: Clock = time.time) -> None:
        self._folder = folder
        self._clock = clock
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {one["id"]: StoredFile(**one) for one in read_objects(folder)}
        # A counter and no number: files come from several threads.
        self._sequence = count(1 + max((file.sequence for file in self._files.values()), default=0))
        for content in folder.glob(f"*{_CONTENT}"):
            # A kill may come between a file's content and its JSON; nobody was told of such a file.
            if content.name.removesuffix(_CONTENT) not in self._files:
                content.unlink()
        self.sweep()

    def keep(self, source: IO[bytes], about: NewFile) -> StoredFile:
        """Copies an upload; it is on the disk when this returns."""
        file_id = new_id("file-")
        with self.writing(file_id, about) as content:
            shutil.copyfileobj(source, content)
        return self._files[file_id]

    @contextmanager
    def writing(self, file_id: str, about: NewFile) -> Generator[IO[bytes]]:
        """Takes a file's content; it is there when the context ends well, in place of one of the same id."""
        with file_aside(self.path(file_id)) as content:
            yield content
            size_bytes = content.tell()
        now = int(self._clock())
        stored = StoredFile(
            id=file_id,
            owner=about.owner,
            filename=about.filename,
            purpose=about.purpose,
            size_bytes=size_bytes,
            created_at=now,
            expires_at=None if about.expires_in_s is None else now + about.expires_in_s,
            sequence=next(self._sequence),
        )
        write_json(self._folder / f"{file_id}.json", asdict(stored))
        self._files[file_id] = stored

    def get(self, file_id: str, owner: str | None) -> StoredFile | None:
        """The file, for its owner and before it expires."""
        self.sweep()
        file = self._files.get(file_id)
        return file if file is not None and file.owner == owner else None

    def listed(self, owner: str | None) -> list[StoredFile]:
        """An owner's files, the newest first."""
        self.sweep()
        own = [file for file in self._files.values() if file.owner == owner]
        return sorted(own, key=lambda file: (file.created_at, file.sequence), reverse=True)

    def path(self, file_id: str) -> Path:
        """Where the content lies."""
        return self._folder / f"{file_id}{_CONTENT}"

    def delete(self, file_id: str) -> None:
        """Removes a file: first its JSON, so that a kill leaves none without content."""
        self._files.pop(file_id, None)
        (self._folder / f"{file_id}.json").unlink(missing_ok=True)
        self.path(file_id).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes what has expired."""
        now = self._clock()
        for file in list(self._files.values()):
            if file.expires_at is not None and file.expires_at <= now:
                self.delete(file.id)


def new_id(prefix: str) -> str:
    """An id that nobody guesses."""
    return prefix + uuid.uuid4().hex
