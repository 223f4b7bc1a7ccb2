"""Tokens become text as they come: never half a character, never a part of a stop string."""

from collections.abc import Callable

_HALF_CHARACTER = "\ufffd"
# Some scripts and broken models give runs of bytes that never make a character; do not hold back for ever.
_LONGEST_HALF_TOKENS = 8


class TextStream:
    """The text of one answer, token by token; `decode` turns ids into text."""

    def __init__(self, decode: Callable[[list[int]], str], stops: tuple[str, ...]) -> None:
        self._decode = decode
        self._stops = stops
        self._ids: list[int] = []
        self._context_from = 0
        self._shown_to = 0
        self._held = ""
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """The text that may be shown now; sets `is_stopped` once a stop string is complete."""
        self._ids.append(token_id)
        text = self._next_text(final=False)
        return self._cut(self._held + text)

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        if self.is_stopped:
            return ""
        text, self._held = self._cut(self._held + self._next_text(final=True)) + self._held, ""
        return text

    def _next_text(self, *, final: bool) -> str:
        """New text in the context of the tokens just before it, since a tokenizer may join or space them."""
        before = self._decode(self._ids[self._context_from : self._shown_to])
        after = self._decode(self._ids[self._context_from :])
        waiting = len(self._ids) - self._shown_to < _LONGEST_HALF_TOKENS
        if after.endswith(_HALF_CHARACTER) and waiting and not final:
            return ""
        self._context_from, self._shown_to = self._shown_to, len(self._ids)
        return after[len(before) :]

    def _cut(self, text: str) -> str:
        """What comes before the first stop string, or before what may become one."""
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
