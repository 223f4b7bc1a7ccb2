"""When bytes arrived at this machine, by the kernel's stamp: a busy reader does not make them late.

Linux stamps what a TCP socket receives (SO_TIMESTAMPNS, socket(7)) on its wall clock. The stamp's age is
taken off the monotonic clock at the read, so a step of the wall clock in between does not reach the result.
A read tells one stamp, that of its last byte. What waits is therefore looked at first and read event by
event: each then has a stamp of its own, unless the kernel has put its segment together with a later one. On
loopback it does so only with what it has acknowledged, after some 40 ms.
"""

import platform
import re
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

# Python's socket module does not name it; the number is that of <asm-generic/socket.h>.
_SO_TIMESTAMPNS = 35
_GENERIC = frozenset({"x86_64", "aarch64", "riscv64", "ppc64le", "s390x"})
_TIMESPEC = struct.Struct("@ll")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)
# An older stamp than this means that the wall clock was stepped.
_OLDEST_NS = 60 * 10**9
# The end of an event or of a response's head, and of the chunk that holds it.
_BLANK_LINE = re.compile(rb"\n\r?\n(?:\r\n)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A response as it came: each read of its body with when it arrived, on `time.perf_counter`.

    `fault` says how the connection broke before the response was whole; None where it did not.
    """

    status: int
    headers: Mapping[str, str]
    began_s: float
    pieces: Sequence[tuple[float, bytes]]
    fault: Exception | None = None


def stamp_arrivals(sock: socket.socket) -> bool:
    """Asks the kernel to stamp what the socket receives; False where it does not do that."""
    if platform.system() != "Linux" or platform.machine() not in _GENERIC:
        return False
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    return True


def receive_events(sock: socket.socket, most_bytes: int) -> list[tuple[bytes, float]]:
    """What waits in the socket, cut after each server-sent event, each part with when its last byte arrived.

    One empty part at the end of the connection; the socket's own errors are the caller's.
    """
    waiting, at_s = receive(sock, most_bytes, socket.MSG_PEEK)
    ends = _event_ends(waiting)
    if len(ends) <= 1:
        return [(sock.recv(len(waiting)), at_s)] if waiting else [(b"", at_s)]
    return [receive(sock, end - start) for start, end in pairwise([0, *ends])]


def receive(sock: socket.socket, most_bytes: int, flags: int = 0) -> tuple[bytes, float]:
    """One read and when its last byte arrived, on `time.perf_counter`; the time of the read without a stamp.

    The socket's own errors, BlockingIOError among them, are the caller's.
    """
    content, ancillary, _, _ = sock.recvmsg(most_bytes, _ANCILLARY_BYTES, flags)
    now_s = time.perf_counter()
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIMESPEC.unpack(value[: _TIMESPEC.size])
            age_ns = time.clock_gettime_ns(time.CLOCK_REALTIME) - (seconds * 10**9 + nanoseconds)
            if 0 <= age_ns < _OLDEST_NS:
                return content, now_s - age_ns / 1e9
    return content, now_s


def _event_ends(content: bytes) -> list[int]:
    """Where the parts of a read end: after each blank line and the end of its chunk, and at its own end."""
    ends = [found.end() for found in _BLANK_LINE.finditer(content)]
    if not ends or ends[-1] < len(content):
        ends.append(len(content))
    return ends
