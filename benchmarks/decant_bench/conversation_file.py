"""The conversations of a run on disk: they need no memory, and several processes can read them."""

import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

from decant_bench.workload import Conversation, Turn


class ConversationFile(Sequence[Conversation]):
    """Conversations by number, each read when it is asked for; `turns` counts the requests they make."""

    def __init__(self, path: Path, starts: "array[int]", turns: int) -> None:
        self.path = path
        self.turns = turns
        self._starts = starts
        self._file = path.open("rb")

    @classmethod
    def write(cls, path: Path, conversations: Iterable[Conversation]) -> "ConversationFile":
        """Writes them all, one a line."""
        starts, turns = array("Q"), 0
        with path.open("wb") as file:
            for conversation in conversations:
                starts.append(file.tell())
                turns += len(conversation.turns)
                file.write(_line(conversation))
        return cls(path, starts, turns)

    @classmethod
    def open(cls, path: Path) -> "ConversationFile":
        """The conversations that another process wrote."""
        starts, turns = array("Q"), 0
        with path.open("rb") as file:
            start = 0
            for line in file:
                starts.append(start)
                start += len(line)
                turns += len(json.loads(line)["turns"])
        return cls(path, starts, turns)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | Sequence[Conversation]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        self._file.seek(self._starts[index])
        return _conversation(self._file.readline())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _line(conversation: Conversation) -> bytes:
    turns = [[turn.content, turn.max_tokens, turn.prompt_tokens] for turn in conversation.turns]
    row = {"index": conversation.index, "head": conversation.head, "turns": turns}
    return json.dumps(row).encode("ascii") + b"\n"


def _conversation(line: bytes) -> Conversation:
    row = json.loads(line)
    turns = tuple(Turn(content, most, length) for content, most, length in row["turns"])
    return Conversation(row["index"], tuple(row["head"]), turns)
