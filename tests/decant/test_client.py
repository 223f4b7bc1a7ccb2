import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from decant.client import OpenAIClient
from decant.errors import ConfigError
from decant.wire import sse_event
from tests.decant.raw_server import (
    ASK,
    END,
    HELLO,
    answer,
    delta,
    serving,
    stream,
    usage,
)


async def test_a_stream_becomes_one_answer() -> None:
    async with (
        serving(stream(*HELLO[:-1], usage(9, 2, cached=4), END)) as server,
        OpenAIClient(server.base_url) as client,
    ):
        got = await client.chat(ASK)
    assert (got.text, got.reasoning, got.finish_reason, got.model) == ("Hello", None, "stop", "m")
    assert (got.timing.prompt_tokens, got.timing.completion_tokens, got.timing.cached_tokens) == (9, 2, 4)
    assert (got.timing.status, got.timing.ok, got.timing.finish_reason) == (200, True, "stop")


async def test_a_stream_is_asked_for_its_usage_and_carries_id_and_key() -> None:
    async with serving(stream(*HELLO)) as server, OpenAIClient(server.base_url, api_key="k1") as client:
        got = await client.chat(ASK, request_id="row-7")
    assert server.bodies == [{**ASK, "stream": True, "stream_options": {"include_usage": True}}]
    assert "x-request-id: row-7" in server.heads[0].lower()
    assert "authorization: bearer k1" in server.heads[0].lower()
    assert got.timing.request_id == "row-7"


async def test_a_stream_cut_at_every_byte_is_the_same_answer() -> None:
    body = b": ping\r\n\r\n" + b"".join(HELLO).replace(b"lo", "lö".encode())
    async with (
        serving(stream(*(body[at : at + 1] for at in range(len(body))))) as server,
        OpenAIClient(server.base_url) as client,
    ):
        assert (await client.chat(ASK)).text == "Hellö"


async def test_a_stream_may_end_without_its_last_blank_line() -> None:
    async with (
        serving(stream(*HELLO[:3], HELLO[3].rstrip())) as server,
        OpenAIClient(server.base_url) as client,
    ):
        assert (await client.chat(ASK)).finish_reason == "stop"


async def test_events_of_one_read_have_one_stamp() -> None:
    async with serving(stream(b"".join(HELLO))) as server, OpenAIClient(server.base_url) as client:
        first, second = (await client.chat(ASK)).timing.chunk_times_s
    assert first == second


async def test_stamps_tell_the_delays_that_the_server_made() -> None:
    parts = (HELLO[0], 0.3, HELLO[1], 0.2, HELLO[2], 0.3, HELLO[3], usage(5, 3), END)
    async with serving(stream(*parts)) as server, OpenAIClient(server.base_url) as client:
        timing = (await client.chat(ASK)).timing
    assert timing.ttfb_s is not None
    assert timing.ttfb_s < 0.15
    # The role came with an empty content, which is no token; the end came 0.3 s after the last content.
    assert timing.ttft_s == pytest.approx(0.3, abs=0.12)
    assert timing.chunk_gaps_s == (pytest.approx(0.2, abs=0.12),)
    assert timing.e2e_s == pytest.approx(0.5, abs=0.15)
    assert timing.tpot_s == pytest.approx(0.1, abs=0.06)


async def test_latency_counts_from_when_the_bytes_left() -> None:
    async with (
        serving(stream(0.2, *HELLO)) as server,
        OpenAIClient(server.base_url, max_connections=1) as client,
    ):
        intended_s = time.perf_counter()
        both = await asyncio.gather(*(client.chat(ASK, intended_s=intended_s) for _ in range(2)))
    slow = max(both, key=lambda got: got.timing.actual_s).timing
    # The second one waited for the only connection: response latency holds that, service latency does not.
    assert slow.send_delay_s == pytest.approx(0.2, abs=0.12)
    assert slow.service_s == pytest.approx(0.2, abs=0.12)
    assert slow.response_s == pytest.approx(0.4, abs=0.2)


async def test_as_many_requests_are_in_flight_as_are_sent() -> None:
    async with serving(stream(0.3, *HELLO)) as server, OpenAIClient(server.base_url) as client:
        started_s = time.perf_counter()
        for _ in range(2):
            found = await asyncio.gather(*(client.chat(ASK) for _ in range(30)))
            assert {one.text for one in found} == {found[0].text}
    # One after another they would have taken 18 s.
    assert time.perf_counter() - started_s < 6


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_reasoning_is_kept_apart_and_is_the_first_token(name: str) -> None:
    parts = (
        delta(**{name: "7+5"}),
        delta(**{name: "=12"}),
        0.3,
        delta(content="2"),
        delta(finish="stop"),
        END,
    )
    async with serving(stream(*parts)) as server, OpenAIClient(server.base_url) as client:
        got = await client.chat(ASK)
    assert (got.text, got.reasoning) == ("2", "7+5=12")
    assert got.timing.ttft_s is not None
    assert got.timing.ttft_s < 0.25
    assert len(got.timing.chunk_times_s) == 3


async def test_an_empty_answer_ends_with_its_finish() -> None:
    async with (
        serving(stream(HELLO[0], 0.2, HELLO[3], END)) as server,
        OpenAIClient(server.base_url) as client,
    ):
        got = await client.chat(ASK)
    assert (got.text, got.timing.ttft_s) == ("", None)
    assert got.timing.e2e_s == pytest.approx(0.2, abs=0.12)


def logprob_chunk(text: str, *tokens: str) -> bytes:
    content = [{"token": token, "logprob": -0.5} for token in tokens]
    choice = {"index": 0, "delta": {"content": text}, "logprobs": {"content": content}}
    return sse_event({"choices": [choice]})


async def test_logprobs_say_how_many_tokens_came_in_a_chunk() -> None:
    # The second token is half a character: it has no text of its own, and counts with the third.
    parts = (
        logprob_chunk("a", "a"),
        logprob_chunk("", "\x00"),
        0.3,
        logprob_chunk("é", "\x01"),
        delta(finish="stop"),
        usage(5, 4),
        END,
    )
    async with serving(stream(*parts)) as server, OpenAIClient(server.base_url) as client:
        got = await client.chat(ASK | {"logprobs": True})
    assert got.logprobs is not None
    assert [(token.token, token.logprob) for token in got.logprobs] == [
        ("a", -0.5),
        ("\x00", -0.5),
        ("\x01", -0.5),
    ]
    assert got.timing.chunk_tokens == (1, 2)
    assert got.timing.itl_s == (pytest.approx(0.15, abs=0.07),)


async def test_logprobs_that_leave_tokens_out_do_not_say_it() -> None:
    parts = (logprob_chunk("a", "a"), logprob_chunk("é", "\x01"), delta(finish="stop"), usage(5, 4), END)
    async with serving(stream(*parts)) as server, OpenAIClient(server.base_url) as client:
        timing = (await client.chat(ASK | {"logprobs": True})).timing
    assert (len(timing.chunk_times_s), timing.chunk_tokens, timing.itl_s) == (2, (), ())


async def test_an_answer_that_is_not_streamed() -> None:
    body = {
        "model": "m",
        "choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    async with serving(answer(200, body)) as server, OpenAIClient(server.base_url) as client:
        got = await client.chat(ASK, stream=False)
    assert (got.text, got.finish_reason, got.timing.ttft_s, got.timing.tpot_s) == (
        "Hello",
        "length",
        None,
        None,
    )
    assert got.timing.e2e_s is not None
    assert "stream_options" not in server.bodies[0]


async def test_a_stream_that_ends_gives_its_connection_back() -> None:
    async with serving(stream(*HELLO)) as server, OpenAIClient(server.base_url) as client:
        for _ in range(5):
            await client.chat(ASK)
    assert len(set(server.connections)) == 1


async def test_a_server_that_never_ends_its_stream_does_not_hold_a_whole_answer() -> None:
    async with serving(stream(*HELLO, 30.0)) as server, OpenAIClient(server.base_url, timeout_s=5) as client:
        assert (await client.chat(ASK)).text == "Hello"


async def test_cancelling_a_request_reaches_the_server() -> None:
    async with (
        serving(stream(HELLO[1], *([b": ping\n\n", 0.02] * 500))) as server,
        OpenAIClient(server.base_url) as client,
    ):
        task = asyncio.create_task(client.chat(ASK))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.disconnected.wait(), 5)


async def test_several_answers_at_once_are_refused() -> None:
    async with OpenAIClient("http://127.0.0.1:9/v1") as client:
        with pytest.raises(ConfigError, match="n=4: send one request per sample"):
            await client.chat(ASK | {"n": 4})


@pytest.mark.parametrize(
    "base_url", ["localhost:8000/v1", "ftp://127.0.0.1/v1", "http://", "http://host:port/v1", ""]
)
def test_a_base_url_that_is_none_is_named(base_url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        OpenAIClient(base_url)


async def test_text_with_lone_surrogates_is_sent() -> None:
    half = json.loads('"\\ud83d"')
    async with serving(stream(*HELLO)) as server, OpenAIClient(server.base_url) as client:
        await client.chat({"model": "m", "messages": [{"role": "user", "content": half}]})
    assert server.bodies[0]["messages"][0]["content"] == half


async def test_models_are_listed_and_described() -> None:
    described = {"id": "org/m", "decant": {"engine": "scripted"}}
    listed = answer(200, {"object": "list", "data": [{"id": "m"}]})
    async with serving(listed, answer(200, described)) as server, OpenAIClient(server.base_url) as client:
        assert await client.models() == [{"id": "m"}]
        assert await client.model("org/m") == described
    assert [head.split()[1] for head in server.heads] == ["/v1/models", "/v1/models/org%2Fm"]


async def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with serving(stream(*HELLO)) as server, OpenAIClient(server.base_url) as client:
        assert (await client.chat(ASK)).text == "Hello"


async def test_it_talks_to_a_real_asgi_server() -> None:
    async def chat(request: Request) -> StreamingResponse:
        body = await request.json()

        async def events() -> AsyncIterator[bytes]:
            for word in body["messages"][0]["content"].split():
                yield delta(content=word + " ")
            yield delta(finish="stop") + END

        return StreamingResponse(events(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    listening = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listening]))
    async with OpenAIClient(f"http://127.0.0.1:{listening.getsockname()[1]}/v1") as client:
        asked = [{"model": "m", "messages": [{"role": "user", "content": f"number {i}"}]} for i in range(40)]
        answers = await asyncio.gather(*(client.chat(ask) for ask in asked))
    assert [got.text for got in answers] == [f"number {i} " for i in range(40)]
    server.should_exit = True
    await task
    listening.close()
