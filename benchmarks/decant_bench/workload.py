"""From a workload's config to conversations: what each request asks, fixed by the seed."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from decant.dataset import read_good_rows
from decant.errors import DataError
from decant.exchange import Route
from decant.task import Message
from decant_bench.bench_config import LengthConfig, WorkloadConfig
from decant_bench.prompts import PromptWriter
from decant_bench.tokens import TokenCounter
from decant_bench.traces import MOONCAKE_BLOCK_TOKENS, TraceRequest

# Each purpose draws from a stream of its own, so that one more draw here changes nothing there.
_MEASURED, _WARMUP, _PREFIX, _BLOCK, _ORDER = range(5)
_MOST_REDRAWS = 100


@dataclass(frozen=True, slots=True)
class Turn:
    """One question. `prompt_tokens` is its own length with what precedes it at the start, None if unknown."""

    content: str
    max_tokens: int
    prompt_tokens: int | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation: what stands before it and its turns; most have one."""

    index: int
    head: tuple[Message, ...]
    turns: tuple[Turn, ...]

    @property
    def key(self) -> str:
        """What makes two conversations the same to a prompt cache."""
        return "\n".join([*(message["content"] for message in self.head), self.turns[0].content])

    def body(self, turn: int, answers: Sequence[str], *, route: Route) -> dict[str, Any]:
        """The request's own fields for one turn, given the answers to those before."""
        messages = list(self.head)
        for asked, answer in zip(self.turns[:turn], answers, strict=True):
            messages += [{"role": "user", "content": asked.content}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": self.turns[turn].content})
        limit = {"max_tokens": self.turns[turn].max_tokens}
        if route == "chat":
            return {"messages": messages, **limit}
        return {"prompt": "\n".join(message["content"] for message in messages), **limit}


class Workload:
    """Makes conversations by number: the same seed and number give the same conversation."""

    def __init__(self, config: WorkloadConfig, *, counter: TokenCounter, seed: int) -> None:
        self._config = config
        self._counter = counter
        self._writer = PromptWriter(counter)
        self._seed = seed
        self._cached: dict[tuple[int, int], str] = {}

    def measured(self, n: int, *, trace: Sequence[TraceRequest] | None = None) -> Iterator[Conversation]:
        """The conversations of a run, one by one, lengths from the trace where there is one."""
        if self._config.data is not None:
            return self._rows(n)
        if trace is not None:
            return (self._traced(index, request) for index, request in enumerate(trace[:n]))
        return (self._synthetic(index, _MEASURED) for index in range(n))

    def warmup(self, n: int, measured: Sequence[Conversation]) -> list[Conversation]:
        """As many conversations of one turn, alike in length, whose prompts none of the measured ones has."""
        # Hashes, for a long run's prompts are kept on disk; one that is taken by chance is drawn again.
        taken = {hash(conversation.key) for conversation in measured}
        draw = self._shuffled(measured) if self._config.data is not None else self._fresh
        return [self._unlike(taken, index, draw) for index in range(n)]

    def _unlike(self, taken: set[int], index: int, draw: Callable[[int], Conversation]) -> Conversation:
        for attempt in range(_MOST_REDRAWS):
            conversation = draw(index + attempt * 1_000_003)
            if hash(conversation.key) not in taken:
                taken.add(hash(conversation.key))
                return Conversation(index, conversation.head, conversation.turns[:1])
        raise DataError("found no prompts for the warm-up that are not measured: make the prompts longer")

    def _fresh(self, index: int) -> Conversation:
        return self._synthetic(index, _WARMUP)

    def _shuffled(self, measured: Sequence[Conversation]) -> Callable[[int], Conversation]:
        def draw(index: int) -> Conversation:
            rng = self._rng(_WARMUP, index)
            source = measured[int(rng.integers(len(measured)))]
            words = source.turns[0].content.split()
            rng.shuffle(words)
            turn = Turn(f"{index} {' '.join(words)}", source.turns[0].max_tokens, None)
            return Conversation(index, source.head, (turn,))

        return draw

    def _synthetic(self, index: int, stream: int) -> Conversation:
        config, rng = self._config, self._rng(stream, index)
        head = self._head(int(rng.integers(config.prefix_groups)), stream)
        turns: list[Turn] = []
        before = config.prefix_tokens
        for _ in range(config.turns):
            length = draw_length(config.prompt_tokens, rng)
            most = draw_length(config.output_tokens, rng)
            own = before + length if not turns else None
            turns.append(Turn(self._writer.write(length, rng), most, own))
        return Conversation(index, head, tuple(turns))

    def _head(self, group: int, stream: int) -> tuple[Message, ...]:
        if not self._config.prefix_tokens:
            return ()
        # The warm-up has beginnings of its own: it must not fill the cache for what is measured.
        text = self._text(_PREFIX, 2 * group + (stream == _WARMUP), self._config.prefix_tokens)
        return ({"role": "system", "content": text},)

    def _traced(self, index: int, request: TraceRequest) -> Conversation:
        length = max(1, request.prompt_tokens)
        whole = [self._text(_BLOCK, block, MOONCAKE_BLOCK_TOKENS) for block in request.blocks[:-1]]
        after = " ".join(whole) if len(whole) * MOONCAKE_BLOCK_TOKENS < length else ""
        rng = self._rng(_BLOCK, request.blocks[-1]) if request.blocks else self._rng(_MEASURED, index)
        content = self._writer.write(length, rng, after=after)
        return Conversation(index, (), (Turn(content, max(1, request.completion_tokens), length),))

    def _rows(self, n: int) -> Iterator[Conversation]:
        config = self._config
        assert config.data is not None
        rows = read_good_rows(config.data)
        if not rows:
            raise DataError(f"{config.data}: holds no rows")
        rng = self._rng(_ORDER, 0)
        order = [int(i) for _ in range(math.ceil(n / len(rows))) for i in rng.permutation(len(rows))][:n]
        for index, place in enumerate(order):
            where = f"{config.data}:{rows[place].line}"
            *head, last = _messages(rows[place].fields, config, where)
            most = draw_length(config.output_tokens, self._rng(_MEASURED, index))
            text = last["content"]
            length = self._counter.count("\n".join(m["content"] for m in (*head, last)))
            yield Conversation(index, tuple(head), (Turn(text, most, length),))

    def _text(self, stream: int, number: int, length: int) -> str:
        if (stream, number) not in self._cached:
            self._cached[stream, number] = self._writer.write(length, self._rng(stream, number))
        return self._cached[stream, number]

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, stream, number])


def draw_length(config: LengthConfig, rng: np.random.Generator) -> int:
    """One length of the distribution, rounded and kept within its bounds."""
    if config.kind == "fixed":
        drawn = config.mean
    elif config.kind == "normal":
        drawn = rng.normal(config.mean, config.std)
    else:
        spread = math.log(1 + (config.std / config.mean) ** 2)
        drawn = rng.lognormal(math.log(config.mean) - spread / 2, math.sqrt(spread))
    high = math.inf if config.high is None else config.high
    return int(min(max(round(drawn), config.low), high))


def _messages(fields: dict[str, Any], config: WorkloadConfig, where: str) -> list[Message]:
    """A row's own `messages` up to the last of the user, else what the task makes of its fields."""
    given = fields.get("messages")
    if given is None:
        try:
            return config.task.messages(fields)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    messages = list(_text_messages(given, where))
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    if not messages:
        raise DataError(f"{where}: `messages` holds no message of the user")
    return messages


def _text_messages(given: Any, where: str) -> Iterator[Message]:
    messages = cast(list[Any], given) if isinstance(given, list) else [given]
    for message in messages:
        match message:
            case {"role": str(role), "content": str(content)}:
                yield {"role": role, "content": content}
            case _:
                raise DataError(f"{where}: `messages` must be a list of objects with role and content")
