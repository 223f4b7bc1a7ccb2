"""Sending conversations and recording every request of them: answered, failed, cut off or never sent."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from decant.client import ApiError, Completion
from decant.exchange import Route
from decant.timing import RequestTiming
from decant_bench.pacing import Clock
from decant_bench.records import OwnKind, Record
from decant_bench.replay import ChatClient
from decant_bench.workload import Conversation


class BenchClient(ChatClient, Protocol):
    """What the driver needs of a client; `decant.client.OpenAIClient` is one."""

    async def complete(
        self,
        request: Mapping[str, Any],
        *,
        stream: bool = True,
        intended_s: float | None = None,
        request_id: str | None = None,
    ) -> Completion:
        """One text completion; ApiError when it fails."""
        ...


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What all requests of a run share."""

    model: str
    route: Route
    stream: bool
    think_s: float
    extra: Mapping[str, Any]
    keeps_text: bool


@dataclass(slots=True)
class Counters:
    """How far a run is."""

    offered: int = 0
    sent: int = 0
    completed: int = 0
    errors: Counter[str] = field(default_factory=Counter[str])

    @property
    def in_flight(self) -> int:
        """Sent and not yet answered."""
        unsent = self.errors["unsent"] + self.errors["turn_skipped"]
        return self.sent - self.completed - self.errors.total() + unsent


class Driver:
    """Sends conversations over one client; `on_record` gets every request once, whatever became of it."""

    def __init__(
        self, client: BenchClient, shape: RequestShape, *, clock: Clock, on_record: Callable[[Record], None]
    ) -> None:
        self.counters = Counters()
        self._client = client
        self._shape = shape
        self._clock = clock
        self._on_record = on_record
        # Unique to the run, so that a server's log tells its requests from those of another.
        self._run = uuid.uuid4().hex[:8]

    async def send_due(
        self, conversation: Conversation, due_s: float, *, taken_up_s: float | None = None
    ) -> None:
        """One conversation whose first request is due at `due_s`.

        `taken_up_s` is when it was taken up, where it had to wait after that: its schedule error ends there.
        """
        await self._send(conversation, due_s, taken_up_s)

    async def send_free(self, conversation: Conversation) -> None:
        """One conversation of a client that is free: nothing is due, so latency counts from the send."""
        await self._send(conversation, None)

    def leave(self, conversation: Conversation, due_s: float | None) -> None:
        """Records a conversation that was offered and never sent."""
        self._skip(conversation, 0, "unsent", due_s)

    async def _send(
        self, conversation: Conversation, due_s: float | None, taken_up_s: float | None = None
    ) -> None:
        answers: list[str] = []
        for turn in range(len(conversation.turns)):
            if turn:
                due_s, taken_up_s = await self._think(due_s), None
            try:
                record, answer = await self._ask(conversation, turn, answers, due_s, taken_up_s)
            except asyncio.CancelledError:
                self._skip(conversation, turn + 1, "turn_skipped", None)
                raise
            self._take(record)
            if answer is None:
                self._skip(conversation, turn + 1, "turn_skipped", None)
                return
            answers.append(answer)

    async def _think(self, due_s: float | None) -> float | None:
        next_s = self._clock.now_s() + self._shape.think_s
        if self._shape.think_s:
            await self._clock.sleep_until(next_s)
        return None if due_s is None else next_s

    async def _ask(
        self,
        conversation: Conversation,
        turn: int,
        answers: list[str],
        due_s: float | None,
        taken_up_s: float | None,
    ) -> tuple[Record, str | None]:
        shape, started_s = self._shape, self._clock.now_s()
        body = {
            "model": shape.model,
            **conversation.body(turn, answers, route=shape.route),
            **shape.extra,
        }
        send = self._client.chat if shape.route == "chat" else self._client.complete
        self.counters.sent += 1
        late_s = None if due_s is None else (started_s if taken_up_s is None else taken_up_s) - due_s
        try:
            completion = await send(
                body, stream=shape.stream, intended_s=due_s, request_id=self._id(conversation, turn)
            )
        except ApiError as error:
            timing = error.timing or self._bare(conversation, turn, due_s, started_s, kind=error.kind)
            return self._record(conversation, turn, timing, late_s, error=str(error)), None
        except asyncio.CancelledError:
            timing = self._bare(conversation, turn, due_s, started_s, kind="unfinished")
            words = "the run ended before the answer did"
            self._take(self._record(conversation, turn, timing, late_s, error=words))
            raise
        text = (completion.reasoning or "") + completion.text if shape.keeps_text else None
        return self._record(conversation, turn, completion.timing, late_s, text=text), completion.text

    def _skip(self, conversation: Conversation, first: int, kind: OwnKind, due_s: float | None) -> None:
        now_s = self._clock.now_s()
        for turn in range(first, len(conversation.turns)):
            timing = self._bare(conversation, turn, due_s if turn == 0 else None, now_s, kind=kind)
            self._take(self._record(conversation, turn, timing))

    def _take(self, record: Record) -> None:
        counters, kind = self.counters, record.timing.error_kind
        counters.offered += 1
        counters.completed += kind is None
        if kind is not None:
            counters.errors[kind] += 1
        self._on_record(record)

    def _bare(
        self, conversation: Conversation, turn: int, due_s: float | None, actual_s: float, *, kind: str
    ) -> RequestTiming:
        return RequestTiming(
            request_id=self._id(conversation, turn), intended_s=due_s, actual_s=actual_s, error_kind=kind
        )

    def _record(
        self,
        conversation: Conversation,
        turn: int,
        timing: RequestTiming,
        late_s: float | None = None,
        *,
        text: str | None = None,
        error: str | None = None,
    ) -> Record:
        planned = conversation.turns[turn].prompt_tokens
        return Record(
            index=conversation.index,
            turn=turn,
            timing=timing,
            planned_prompt_tokens=planned,
            schedule_error_s=late_s,
            text=text,
            error=error,
        )

    def _id(self, conversation: Conversation, turn: int) -> str:
        return f"bench-{self._run}-{conversation.index}-{turn}"
