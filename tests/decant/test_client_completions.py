import pytest

from decant.api_error import ApiError
from decant.client import OpenAIClient
from decant.wire import sse_event
from tests.decant.raw_server import END, answer, serving, stream, usage

ASK = {"model": "m", "prompt": "Once"}


def piece(text: str, *, finish: str | None = None, tokens: int = 0) -> bytes:
    choice: dict[str, object] = {"index": 0, "text": text, "finish_reason": finish}
    if tokens:
        choice["logprobs"] = {"tokens": ["x"] * tokens, "token_logprobs": [-0.5] * tokens}
    return sse_event({"model": "m", "choices": [choice]})


async def test_a_streamed_completion_is_read_and_stamped_like_a_chat() -> None:
    parts = (0.1, piece("Once "), 0.2, piece("upon", finish="stop"), usage(3, 2), END)
    async with serving(stream(*parts)) as server, OpenAIClient(server.base_url) as client:
        got = await client.complete(ASK)
    assert (got.text, got.finish_reason) == ("Once upon", "stop")
    assert (got.timing.prompt_tokens, got.timing.completion_tokens) == (3, 2)
    assert got.timing.chunk_gaps_s == (pytest.approx(0.2, abs=0.12),)
    assert server.heads[0].startswith("POST /v1/completions")


async def test_the_tokens_of_a_chunk_are_known_where_the_server_tells() -> None:
    parts = (piece("a", tokens=1), piece("bcd", tokens=3), piece("", finish="length"), usage(1, 4), END)
    async with serving(stream(*parts)) as server, OpenAIClient(server.base_url) as client:
        assert (await client.complete(ASK)).timing.chunk_tokens == (1, 3)


async def test_a_whole_completion_has_no_first_token() -> None:
    body = {"choices": [{"text": "upon", "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    async with serving(answer(200, body)) as server, OpenAIClient(server.base_url) as client:
        got = await client.complete(ASK, stream=False)
    assert (got.text, got.timing.ttft_s, got.timing.ok) == ("upon", None, True)


async def test_an_answer_without_a_choice_is_no_answer() -> None:
    async with (
        serving(answer(200, {"choices": []})) as server,
        OpenAIClient(server.base_url, max_retries=0) as client,
    ):
        with pytest.raises(ApiError, match="without a choice"):
            await client.complete(ASK, stream=False)
