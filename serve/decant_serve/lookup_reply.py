"""An answer that was looked up, written as the engine would have: whole, or as the stream asked for."""

import json
import time
from typing import TYPE_CHECKING

from decant_serve.answers import Answer, Choice, Usage
from decant_serve.calls import Call
from decant_serve.exchange import Exchange, Reply

if TYPE_CHECKING:
    from decant_serve.lookup import Found


async def write_found(found: "Found", call: Call, exchange: Exchange, reply: Reply) -> None:
    """Sends the answer and notes its times: nothing was queued, the store's time is the engine's part."""
    exchange.admitted_s = exchange.read_s
    now_s = time.perf_counter()
    exchange.received(now_s)
    answer = Answer("chat", call.body["model"])
    if call.streams:
        passed = reply.voice.stream(exchange.passage.take(_events(answer, found), now_s))
        reply.hold(passed)
    else:
        reply.set_whole(200, reply.voice.whole(exchange.passage.take_whole(_body(answer, found))))


def _usage(found: "Found") -> Usage | None:
    if found.prompt_tokens is None or found.completion_tokens is None:
        return None
    return Usage(prompt_tokens=found.prompt_tokens, completion_tokens=found.completion_tokens)


def _events(answer: Answer, found: "Found") -> bytes:
    reasoning = answer.piece(0, found.reasoning, is_reasoning=True) if found.reasoning else b""
    pieces = (answer.opening(0), reasoning, answer.piece(0, found.text))
    end = answer.piece(0, "", finish_reason="stop") + answer.closing(_usage(found), None)
    return b"".join(pieces) + end


def _body(answer: Answer, found: "Found") -> bytes:
    choice = Choice(found.text, "stop", reasoning=found.reasoning)
    return json.dumps(answer.whole([choice], _usage(found), None), ensure_ascii=False).encode()
