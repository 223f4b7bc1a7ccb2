"""How many tokens a request may come to, before an engine has seen it: what its key is charged meanwhile."""

import json
import math
from collections.abc import Sequence
from typing import Any

from decant.wire import ChatRequest, CompletionRequest

# English text in today's vocabularies; other scripts have more bytes per character, and more tokens.
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4
# For a request that sets no limit to its answer.
_UNLIMITED_ANSWER_TOKENS = 256


def request_tokens(request: ChatRequest | CompletionRequest) -> int:
    """Prompt and answers together: the prompt by its bytes, each answer by its limit."""
    prompt = _chat_tokens(request) if isinstance(request, ChatRequest) else prompt_tokens(request.prompt)
    limit = request.token_limit
    return prompt + (_UNLIMITED_ANSWER_TOKENS if limit is None else limit) * (request.n or 1)


def prompt_tokens(prompt: str | Sequence[Any]) -> int:
    """The tokens of a text, of a list of texts, or of lists of token ids, which count as they are."""
    if isinstance(prompt, str):
        return math.ceil(len(prompt.encode("utf-8", "replace")) / _BYTES_PER_TOKEN)
    return sum(1 if isinstance(item, int) else prompt_tokens(item) for item in prompt)


def _chat_tokens(request: ChatRequest) -> int:
    texts = [_message_text(message.content) for message in request.messages]
    tools = json.dumps(request.tools) if request.tools else ""
    return sum(prompt_tokens(text) + _TOKENS_PER_MESSAGE for text in texts) + prompt_tokens(tools)


def _message_text(content: str | list[dict[str, Any]] | None) -> str:
    # A remote endpoint may take parts that are not text; their text is all that can be counted here.
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""
