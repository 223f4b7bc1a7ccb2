"""A bounded ring of records in a shared file: one process writes, another reads, and neither waits.

A record that does not fit is dropped and counted, so a reader that stopped costs the writer nothing.
"""

import json
import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

DEFAULT_BYTES = 4 * 2**20

_MAGIC = b"DCNTRNG1"
_HEAD = struct.Struct("<8sQQQQQ")  # magic, capacity, bytes written, bytes read, records written, dropped
_WRITTEN_AT, _READ_AT, _RECORDS_AT, _DROPPED_AT = 16, 24, 32, 40
_NOTE_AT, _NOTE_LENGTH = 48, struct.Struct("<I")
_DATA_AT = 4096
_RECORD = struct.Struct("<II")  # length of the payload, its CRC-32
_COUNT = struct.Struct("<Q")
_PATIENCE = 3


class RingWriter:
    """Makes the file anew and appends to it; `note` says, as JSON, what its reader should know beforehand."""

    def __init__(self, path: Path, *, note: Mapping[str, Any], size_bytes: int = DEFAULT_BYTES) -> None:
        told = json.dumps(note).encode()
        assert len(told) < _DATA_AT - _NOTE_AT - _NOTE_LENGTH.size, "a note of less than a page"
        aside = path.with_suffix(".new")
        with aside.open("wb+") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(_DATA_AT + size_bytes)
            self._map = mmap.mmap(file.fileno(), _DATA_AT + size_bytes)
        self._size = size_bytes
        self._written = self._records = self.dropped = 0
        _HEAD.pack_into(self._map, 0, _MAGIC, size_bytes, 0, 0, 0, 0)
        _NOTE_LENGTH.pack_into(self._map, _NOTE_AT, len(told))
        self._map[_NOTE_AT + _NOTE_LENGTH.size : _NOTE_AT + _NOTE_LENGTH.size + len(told)] = told
        aside.replace(path)

    def write(self, payload: bytes) -> bool:
        """Appends one record; False where there was no room for it."""
        record = _RECORD.pack(len(payload), zlib.crc32(payload)) + payload
        (read,) = _COUNT.unpack_from(self._map, _READ_AT)
        if len(record) > self._size - (self._written - read):
            self.drop()
            return False
        start = self._written % self._size
        first = record[: self._size - start]
        self._map[_DATA_AT + start : _DATA_AT + start + len(first)] = first
        rest = record[len(first) :]
        self._map[_DATA_AT : _DATA_AT + len(rest)] = rest
        self._written += len(record)
        self._records += 1
        _COUNT.pack_into(self._map, _RECORDS_AT, self._records)
        # Last: whoever sees it sees the record. Where stores may be reordered, the CRC tells.
        _COUNT.pack_into(self._map, _WRITTEN_AT, self._written)
        return True

    def drop(self) -> None:
        """Counts a record that its writer could not keep until it was ready."""
        self.dropped += 1
        _COUNT.pack_into(self._map, _DROPPED_AT, self.dropped)

    def close(self) -> None:
        """Lets go of the memory; the file stays for its reader."""
        self._map.close()


class RingReader:
    """Takes records out; ValueError for a file that is no ring."""

    def __init__(self, path: Path) -> None:
        with path.open("rb+") as file:
            status = os.fstat(file.fileno())
            if status.st_size < _DATA_AT:
                raise ValueError(f"{path}: not a ring")
            self._map = mmap.mmap(file.fileno(), status.st_size)
        magic, self._size, _, self._read, _, _ = _HEAD.unpack_from(self._map, 0)
        if magic != _MAGIC or status.st_size != _DATA_AT + self._size:
            self._map.close()
            raise ValueError(f"{path}: not a ring")
        self.inode = status.st_ino
        self.torn = 0
        self._refused = 0

    @property
    def note(self) -> Mapping[str, Any]:
        """What the writer said of itself."""
        (length,) = _NOTE_LENGTH.unpack_from(self._map, _NOTE_AT)
        start = _NOTE_AT + _NOTE_LENGTH.size
        return cast("dict[str, Any]", json.loads(self._map[start : start + length]))

    @property
    def dropped(self) -> int:
        """Records that found no room, so far."""
        return _COUNT.unpack_from(self._map, _DROPPED_AT)[0]

    def read(self) -> list[bytes]:
        """Every whole record since the last call."""
        (written,) = _COUNT.unpack_from(self._map, _WRITTEN_AT)
        payloads: list[bytes] = []
        while self._read < written:
            payload = self._next(written)
            if payload is None:
                self._be_patient(written)
                break
            payloads.append(payload)
        _COUNT.pack_into(self._map, _READ_AT, self._read)
        return payloads

    def close(self) -> None:
        """Lets go of the memory."""
        self._map.close()

    def _next(self, written: int) -> bytes | None:
        length, checksum = _RECORD.unpack(self._bytes(self._read, _RECORD.size))
        if self._read + _RECORD.size + length > written:
            return None
        payload = self._bytes(self._read + _RECORD.size, length)
        if zlib.crc32(payload) != checksum:
            return None
        self._read += _RECORD.size + length
        self._refused = 0
        return payload

    def _be_patient(self, written: int) -> None:
        """A record that stays torn is given up, with what stands behind it."""
        self._refused += 1
        if self._refused >= _PATIENCE:
            self._read, self._refused = written, 0
            self.torn += 1

    def _bytes(self, position: int, length: int) -> bytes:
        start = position % self._size
        first = self._map[_DATA_AT + start : _DATA_AT + min(start + length, self._size)]
        return first + self._map[_DATA_AT : _DATA_AT + length - len(first)]
