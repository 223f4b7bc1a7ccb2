"""What /completions answers, in the shape of a chat."""

from pydantic import BaseModel

from decant.wire import ChatChunk, ChatChunkChoice, ChatDelta, ChoiceLogprobs, TokenLogprob, Usage


class _TextLogprobs(BaseModel):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []


class _TextChoice(BaseModel):
    index: int = 0
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _TextLogprobs | None = None


class TextAnswer(BaseModel):
    """What /completions answers, as one event of a stream or whole: both have one shape."""

    model: str | None = None
    choices: list[_TextChoice]
    usage: Usage | None = None

    def as_chat(self) -> ChatChunk:
        """The same as a chunk of a chat."""
        return ChatChunk(
            model=self.model,
            usage=self.usage,
            choices=[
                ChatChunkChoice(
                    index=choice.index,
                    delta=ChatDelta(content=choice.text),
                    finish_reason=choice.finish_reason,
                    logprobs=_as_chat_logprobs(choice.logprobs),
                )
                for choice in self.choices
            ],
        )


def _as_chat_logprobs(logprobs: _TextLogprobs | None) -> ChoiceLogprobs | None:
    if logprobs is None:
        return None
    pairs = zip(logprobs.tokens, logprobs.token_logprobs, strict=False)
    # The first token of an echoed prompt has no probability.
    return ChoiceLogprobs(content=[TokenLogprob(token=t, logprob=p) for t, p in pairs if p is not None])
