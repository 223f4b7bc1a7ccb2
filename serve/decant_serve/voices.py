"""How an answer is written: the engine's chat bytes as they are, or as another of OpenAI's APIs says it."""

from typing import Protocol

from decant_serve.openai_errors import ApiFault


class Voice(Protocol):
    """Writes one answer."""

    def stream(self, passed: bytes) -> bytes:
        """What the client gets for some whole events of the engine's stream."""
        ...

    def whole(self, body: bytes) -> bytes:
        """What the client gets for an answer that is not streamed."""
        ...

    def error_event(self, fault: ApiFault) -> bytes:
        """The last events of a stream that fails."""
        ...


class PlainVoice:
    """The engine's own bytes."""

    def stream(self, passed: bytes) -> bytes:
        """Unchanged."""
        return passed

    def whole(self, body: bytes) -> bytes:
        """Unchanged."""
        return body

    def error_event(self, fault: ApiFault) -> bytes:
        """OpenAI's error object as an event of its own."""
        return fault.event()
