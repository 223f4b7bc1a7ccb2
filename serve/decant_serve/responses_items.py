"""The output items of a response, as they grow: a message, reasoning, a function call."""

import uuid
from abc import ABC, abstractmethod
from typing import Any

Said = tuple[str, dict[str, Any]]
"""An event's type, and its fields beside type and number."""


class Item(ABC):
    """One item; `index` is its place in the output."""

    prefix = ""

    def __init__(self, index: int) -> None:
        self.index = index
        self._id = f"{self.prefix}_{uuid.uuid4().hex}"
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """All that was added."""
        return "".join(self._texts)

    @property
    def place(self) -> dict[str, Any]:
        """The fields that say which item an event is about."""
        return {"item_id": self._id, "output_index": self.index}

    @abstractmethod
    def to_wire(self, status: str) -> dict[str, Any]:
        """The item as it stands."""

    @abstractmethod
    def add(self, text: str) -> Said:
        """Adds text; the event of it."""

    @abstractmethod
    def inner(self, *, begins: bool) -> list[Said]:
        """What is said of its content after it is added, and before it is done."""

    def opening(self) -> list[Said]:
        """The events that announce it."""
        added = {"output_index": self.index, "item": self.to_wire("in_progress")}
        return [("response.output_item.added", added), *self.inner(begins=True)]

    def closing(self) -> list[Said]:
        """The events that end it."""
        done = {"output_index": self.index, "item": self.to_wire("completed")}
        return [*self.inner(begins=False), ("response.output_item.done", done)]


class MessageItem(Item):
    """The answer's text."""

    prefix = "msg"

    def to_wire(self, status: str) -> dict[str, Any]:
        """A message of one text; of none, before any came."""
        content = [self._part(self.text)] if self.text or status == "completed" else []
        return {"id": self._id, "type": "message", "role": "assistant", "status": status, "content": content}

    def add(self, text: str) -> Said:
        """A text delta."""
        self._texts.append(text)
        return "response.output_text.delta", {**self.place, "content_index": 0, "delta": text, "logprobs": []}

    def inner(self, *, begins: bool) -> list[Said]:
        """Its one part."""
        part = {**self.place, "content_index": 0, "part": self._part("" if begins else self.text)}
        if begins:
            return [("response.content_part.added", part)]
        done: dict[str, Any] = {**self.place, "content_index": 0, "text": self.text, "logprobs": []}
        return [("response.output_text.done", done), ("response.content_part.done", part)]

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": []}


class ReasoningItem(Item):
    """What the model thought, where the engine tells it apart."""

    prefix = "rs"

    def to_wire(self, status: str) -> dict[str, Any]:
        """Reasoning text, without a summary."""
        content = [{"type": "reasoning_text", "text": self.text}] if self.text else []
        return {"id": self._id, "type": "reasoning", "status": status, "summary": [], "content": content}

    def add(self, text: str) -> Said:
        """A delta of reasoning."""
        self._texts.append(text)
        return "response.reasoning_text.delta", {**self.place, "content_index": 0, "delta": text}

    def inner(self, *, begins: bool) -> list[Said]:
        """Its one part."""
        part = {"type": "reasoning_text", "text": "" if begins else self.text}
        at = {**self.place, "content_index": 0}
        if begins:
            return [("response.content_part.added", {**at, "part": part})]
        done = ("response.reasoning_text.done", {**at, "text": self.text})
        return [done, ("response.content_part.done", {**at, "part": part})]


class ToolCallItem(Item):
    """A function to call; its text is the arguments."""

    prefix = "fc"

    def __init__(self, index: int, call_id: str | None, name: str) -> None:
        super().__init__(index)
        self._call_id = call_id or f"call_{uuid.uuid4().hex}"
        self._name = name

    def to_wire(self, status: str) -> dict[str, Any]:
        """The call as far as it has come."""
        return {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": self.text,
        }

    def add(self, text: str) -> Said:
        """A delta of the arguments."""
        self._texts.append(text)
        return "response.function_call_arguments.delta", {**self.place, "delta": text}

    def inner(self, *, begins: bool) -> list[Said]:
        """Its arguments, when they are whole."""
        if begins:
            return []
        done = {**self.place, "name": self._name, "arguments": self.text}
        return [("response.function_call_arguments.done", done)]
