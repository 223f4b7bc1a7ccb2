"""Stamps of what arrives: one per event, however late the reader is."""

import socket
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from decant.arrival import receive_events, stamp_arrivals

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"data: {}\n\n"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A stamped socket, and the one that speaks to it."""
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as reader:
        writer, _ = listener.accept()
        with writer:
            writer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not stamp_arrivals(reader):
                pytest.skip("this kernel does not stamp what a socket receives")
            yield reader, writer


@pytest.mark.parametrize(
    "parts",
    [
        [EVENT],
        [EVENT, EVENT, b"data: cut"],
        [b"a\r\n" + EVENT + b"\r\n", b"a\r\n" + EVENT + b"\r\n", b"0\r\n\r\n"],
        [HEAD, b"c\r\ndata: {}\r\n\r\n\r\n", b"c\r\ndata: {}\r\n\r\n\r\n"],
        [b"data: {}\r\n\r\n", b"data: {}\r\n\r\n"],
        [b'{"no": "events"}'],
    ],
)
def test_what_waits_is_cut_after_each_event(
    ends: tuple[socket.socket, socket.socket], parts: list[bytes]
) -> None:
    reader, writer = ends
    before_s = time.perf_counter()
    writer.sendall(b"".join(parts))
    found = receive_events(reader, 65536)
    assert [content for content, _ in found] == parts
    assert all(before_s - 0.001 < at_s <= time.perf_counter() for _, at_s in found)


def test_the_end_of_a_connection_is_an_empty_part(ends: tuple[socket.socket, socket.socket]) -> None:
    reader, writer = ends
    writer.close()
    assert [content for content, _ in receive_events(reader, 65536)] == [b""]


def test_events_that_waited_for_a_late_reader_keep_their_own_stamps(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    reader, writer = ends
    widest_s = 0.0
    for _ in range(10):  # a fresh connection acknowledges at once, and then the kernel joins segments
        reader.sendall(b"a request")
        writer.recv(100)
        writer.sendall(EVENT)
        time.sleep(0.01)
        writer.sendall(EVENT)
        stamps = [at_s for _, at_s in receive_events(reader, 65536)]
        widest_s = max([widest_s, *(b - a for a, b in pairwise(stamps))])
    assert widest_s > 0.009
