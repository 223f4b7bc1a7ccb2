"""What a model in memory says to a conversation, greedily: golden prompts and how they are observed again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from decant.golden import Finish, GoldenPrompt, GoldenSet, Observation
from decant.task import Message


@dataclass(frozen=True, slots=True)
class _Answer:
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    margins: tuple[float, ...]
    finish: Finish


def record_golden(
    model: Any, tokenizer: Any, conversations: Sequence[Sequence[Message]], *, stage: str, max_tokens: int
) -> GoldenSet:
    """The golden set of a model: its greedy answers to the conversations, of at most `max_tokens` tokens."""
    prompts = [_golden_prompt(model, tokenizer, messages, max_tokens) for messages in conversations]
    return GoldenSet(
        stage=stage, eos_id=tokenizer.eos_token_id, max_tokens=max_tokens, prompts=tuple(prompts)
    )


def as_observation(prompt: GoldenPrompt) -> Observation:
    """A golden prompt seen as what a later stage gave."""
    return Observation(
        rendered=prompt.rendered,
        prompt_ids=prompt.prompt_ids,
        token_ids=prompt.token_ids,
        logprobs=prompt.logprobs,
        finish=prompt.finish,
    )


def _golden_prompt(model: Any, tokenizer: Any, messages: Sequence[Message], max_tokens: int) -> GoldenPrompt:
    rendered = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    answer = _answer(model, prompt_ids, end=tokenizer.eos_token_id, max_tokens=max_tokens)
    return GoldenPrompt(
        messages=tuple(dict(message) for message in messages),
        rendered=rendered,
        prompt_ids=tuple(prompt_ids),
        token_ids=answer.token_ids,
        logprobs=answer.logprobs,
        margins=answer.margins,
        finish=answer.finish,
    )


def _answer(model: Any, prompt_ids: Sequence[int], *, end: int, max_tokens: int) -> _Answer:
    tokens: list[int] = []
    logprobs: list[float] = []
    margins: list[float] = []
    finish: Finish = "length"
    for token, logprob, margin in _greedy(model, prompt_ids):
        if len(tokens) == max_tokens:
            break
        margins.append(margin)
        if token == end:
            finish = "stop"
            break
        tokens.append(token)
        logprobs.append(logprob)
    return _Answer(tuple(tokens), tuple(logprobs), tuple(margins), finish)


def _greedy(model: Any, prompt_ids: Sequence[int]) -> Iterator[tuple[int, float, float]]:
    """Endless (token, log probability, lead over the second) of one prompt, alone: no padding counts."""
    import torch

    model.eval()
    step = torch.tensor([list(prompt_ids)], device=model.device)
    given: dict[str, Any] = {"input_ids": step}
    if model.config.is_encoder_decoder:
        start = torch.tensor([[model.config.decoder_start_token_id]], device=model.device)
        given = {"input_ids": step, "decoder_input_ids": start}
    cache = None
    while True:
        with torch.inference_mode():
            output = model(**given, past_key_values=cache, use_cache=True)
            logprobs = torch.log_softmax(output.logits[0, -1].float(), dim=-1)
            best = torch.topk(logprobs, 2)
        cache = output.past_key_values
        token = int(best.indices[0])
        yield token, float(best.values[0]), float(best.values[0] - best.values[1])
        step = torch.tensor([[token]], device=model.device)
        given = {"input_ids": step}
        if model.config.is_encoder_decoder:
            given = {"encoder_outputs": (output.encoder_last_hidden_state,), "decoder_input_ids": step}
