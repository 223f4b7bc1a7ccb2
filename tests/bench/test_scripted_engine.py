"""The scripted engine on a port of its own, as clients of any kind meet it."""

import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from decant_bench.scripted_engine import scripted_engine

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Where a script is served."""
    script = tmp_path_factory.mktemp("script") / "script.json"
    script.write_text(json.dumps({"answers": [{"chunks": ["x" * 300_000], "prompt_tokens": 1}]}))
    with scripted_engine(script) as engine:
        found = urlsplit(engine.address)
        assert found.hostname is not None
        assert found.port is not None
        yield found.hostname, found.port


def request(version: str, *headers: str, stream: bool) -> bytes:
    messages = [{"role": "user", "content": "hi"}]
    body = json.dumps({"model": "scripted", "messages": messages, "stream": stream}).encode()
    lines = [f"POST /v1/chat/completions HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def all_from(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


@pytest.mark.parametrize(("version", "headers"), [("1.1", ("Connection: close",)), ("1.0", ())])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_reads_to_the_end_of_its_connection_gets_all_and_then_the_end(
    address: tuple[str, int], version: str, headers: tuple[str, ...], stream: bool
) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(request(version, *headers, stream=stream))
        received = all_from(connection)
    assert received.startswith(b"HTTP/1.1 200")
    assert received.count(b"x" * 1000) == 300
    assert received.endswith(b"0\r\n\r\n" if stream else b"}")


def test_other_connections_are_kept_for_the_next_request(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        for last in (False, True):
            connection.sendall(request("1.1", *(("Connection: close",) if last else ()), stream=False))
        assert all_from(connection).count(b"HTTP/1.1 200") == 2
