"""Bytes that no client should send: each gets an answer in OpenAI's shape, and the server goes on."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.timeout(240)

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(serve_for_session: Callable[..., Any], write_script: Callable[..., Path]) -> Iterator[Any]:
    with serve_for_session(write_script({"chunks": ["fine"]})) as running:
        yield running
        assert running.chat("hi").status_code == 200
        assert "gateway-error" not in running.log.read_text()


def good(server: Any) -> str:
    return json.dumps({"model": server.model, "messages": [{"role": "user", "content": "hi"}]})


def chat_with(server: Any, more: str) -> bytes:
    """A chat whose body ends with `more`, as written."""
    return (good(server)[:-1] + "," + more + "}").encode("utf-8", "surrogatepass")


MALFORMED = {
    "nothing": b"",
    "white space": b" \n",
    "a text": b'"hi"',
    "a list": b"[]",
    "null": b"null",
    "half an object": b'{"model": "m"',
    "bytes that are no UTF-8": b'{"model": "\xff\xfe"}',
    "UTF-16": '{"model": "m"}'.encode("utf-16-le") + b"\x00",
    "a zero byte": b"\x00",
    "NaN": b'{"model": NaN}',
    "infinity": b'{"model": -Infinity}',
    "a hundred thousand brackets": b"[" * 100_000,
    "objects a hundred thousand deep": b'{"a":' * 100_000,
    "a number of a hundred thousand digits": b'{"model": ' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses"])
def test_a_body_that_is_no_request_is_a_400(server: Any, path: str, body: bytes) -> None:
    answer = server.http.post(path, content=body)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ('"max_tokens": -1', "max_tokens"),
        ('"n": 99999999999', "n"),
        ('"stop": ["\\ud800"]', "stop"),
        ('"user": "\\udfff"', "user"),
        ('"model": "\\ud83d"', "model"),
        ('"stream": "yes"', "stream"),
        ('"stream_options": {"include_usage": 1}', "stream_options.include_usage"),
        ('"messages": [{"role": "user", "content": "\\ud800"}]', "messages"),
        ('"messages": ' + "[" * 500 + "]" * 500, "messages.0"),
        ('"metadata": ' + '{"a":' * 900 + "1" + "}" * 900, "metadata"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_name(server: Any, more: str, param: str) -> None:
    answer = server.http.post(CHAT, content=chat_with(server, more))
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("number", ["1e400", "-1e999", "99999999999999999999999999", "9223372036854775808"])
def test_a_number_that_no_engine_could_hold_is_refused(server: Any, number: str) -> None:
    for name in ("max_tokens", "temperature", "seed"):
        answer = server.http.post(CHAT, content=chat_with(server, f'"{name}": {number}'))
        assert answer.status_code == 400
        assert "out of range" in answer.json()["error"]["message"]


def test_of_a_key_given_twice_the_last_one_counts(server: Any) -> None:
    assert server.http.post(CHAT, content=chat_with(server, '"model": "another"')).status_code == 404


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_a_page_of_another_site_could_send_unasked_is_a_415(server: Any, kind: str) -> None:
    answer = server.http.post(CHAT, content=good(server), headers={"content-type": kind})
    assert answer.status_code == 415
    assert answer.json()["error"]["param"] == "Content-Type"


def test_a_body_without_a_type_is_taken_from_anywhere_but_another_site(server: Any) -> None:
    assert server.http.post(CHAT, content=good(server)).status_code == 200
    for site, status in (("same-origin", 200), ("cross-site", 415), ("same-site", 415)):
        answer = server.http.post(CHAT, content=good(server), headers={"sec-fetch-site": site})
        assert answer.status_code == status


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON"])
def test_json_is_taken_however_it_is_written(server: Any, kind: str) -> None:
    assert server.http.post(CHAT, content=good(server), headers={"content-type": kind}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/models/%ff", "/v1/models/..%2f..", "/v1/requests/%00/timing", "/page/../serve.py", "//"]
)
def test_an_odd_path_is_a_4xx(server: Any, path: str) -> None:
    answer = exchange(server, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 4")


def exchange(server: Any, sent: bytes, *, then: bytes = b"") -> bytes:
    """What comes back on one connection, until it is closed or nothing comes any more."""
    port = httpx.URL(server.base_url).port
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        received = b""
        if then:
            received = connection.recv(65536)
            connection.sendall(then)
        while part := connection.recv(65536):
            received += part
    return received


def head(server: Any, *lines: str, version: str = "1.1") -> bytes:
    named = ["host: x", "content-type: application/json", *lines]
    return (f"POST {CHAT} HTTP/{version}\r\n" + "\r\n".join(named) + "\r\n\r\n").encode()


def test_http_1_0_gets_its_answer_and_the_end(server: Any) -> None:
    body = good(server).encode()
    answer = exchange(server, head(server, f"content-length: {len(body)}", version="1.0") + body)
    assert b" 200 " in answer.split(b"\r\n")[0]
    assert answer.endswith(b"}")


def test_a_body_in_chunks_is_taken(server: Any) -> None:
    body = good(server).encode()
    parts = [body[:10], body[10:]]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    sent = head(server, "transfer-encoding: chunked", "connection: close") + chunks
    assert b" 200 " in exchange(server, sent).split(b"\r\n")[0]


def test_a_client_that_asks_first_is_told_to_go_on(server: Any) -> None:
    body = good(server).encode()
    asked = head(server, f"content-length: {len(body)}", "expect: 100-continue", "connection: close")
    answer = exchange(server, asked, then=body)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert b"HTTP/1.1 200 OK" in answer


def test_requests_sent_ahead_are_answered_in_turn(server: Any) -> None:
    body = good(server).encode()
    one = head(server, f"content-length: {len(body)}") + body
    last = head(server, f"content-length: {len(body)}", "connection: close") + body
    assert exchange(server, one * 3 + last).count(b"HTTP/1.1 200 OK") == 4


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"HELLO\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_a_400_and_a_closed_connection(server: Any, sent: bytes) -> None:
    assert exchange(server, sent).startswith(b"HTTP/1.1 400")
