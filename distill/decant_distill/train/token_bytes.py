"""Which token of a tokenizer an endpoint means by the text that it shows: exactly one, or an error."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from decant.errors import TrainingError
from decant_distill.label_topk import NamedToken

_SPACE = "\u2581"


@dataclass(frozen=True)
class TokenNames:
    """A tokenizer's tokens by the bytes that they stand for.

    Byte-level vocabularies (GPT-2's spelling) and SentencePiece's pieces are read; of WordPiece's, whose
    white space is not in its tokens, only ids are understood.
    """

    tokenizer: Any
    base: str

    def id_of(self, named: NamedToken) -> int | None:
        """The id of the token that is meant; None for one that is no text, or only pads the vocabulary.

        TrainingError when no token, or more than one, can be meant: the teacher's tokenizer is another then.
        """
        if named.token_id is not None:
            return self._checked(named.token_id, named.raw)
        if not named.raw:
            return None
        ids = self._by_bytes.get(named.raw, ())
        if len(ids) == 1:
            return ids[0]
        if ids:
            known = ", ".join(str(self.tokenizer.convert_ids_to_tokens(i)) for i in ids)
            raise TrainingError(
                f"{self.base}: the endpoint's token {_shown(named.raw)} may be any of {known};"
                " have the endpoint name tokens by id"
            )
        raise TrainingError(
            f"{self.base}: no token of its tokenizer is the endpoint's {_shown(named.raw)}: teacher and"
            " student do not share a tokenizer, and token scores only carry over where they do"
        )

    def _checked(self, token_id: int, raw: bytes | None) -> int | None:
        if token_id >= self._size:
            return None
        # Some servers write nothing where a special token stands.
        if raw and token_id not in self._by_bytes.get(raw, ()):
            raise TrainingError(
                f"{self.base}: the endpoint's token {token_id} is {_shown(raw)}, but this tokenizer's is"
                f" {self.tokenizer.convert_ids_to_tokens(token_id)!r}; token scores only carry over where"
                " teacher and student share a tokenizer"
            )
        return token_id

    @cached_property
    def _size(self) -> int:
        return len(self.tokenizer)

    @cached_property
    def _by_bytes(self) -> Mapping[bytes, tuple[int, ...]]:
        found: dict[bytes, tuple[int, ...]] = {}
        fallbacks: list[tuple[bytes, int]] = []
        for token_id, raw, is_fallback in _tokens(self.tokenizer, self.base):
            if is_fallback:
                fallbacks.append((raw, token_id))
            else:
                found[raw] = (*found.get(raw, ()), token_id)
        # A tokenizer writes a byte's token only where no other token has that text.
        for raw, token_id in fallbacks:
            found.setdefault(raw, (token_id,))
        return found


def _tokens(tokenizer: Any, base: str) -> Iterator[tuple[int, bytes, bool]]:
    """Each token's id and bytes, and whether it is one of SentencePiece's 256 for single bytes."""
    if not tokenizer.is_fast:
        raise TrainingError(
            f"{base}: its tokenizer has no tokenizer.json, which says what its tokens stand for"
        )
    described: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = set(_kinds(described.get("decoder")))
    if "WordPiece" in kinds:
        raise TrainingError(
            f"{base}: WordPiece tokens are no text of their own; use an endpoint that gives ids"
        )
    added: dict[str, int] = tokenizer.get_added_vocab()
    byte_of = _byte_of_character() if "ByteLevel" in kinds else None
    for token, token_id in tokenizer.get_vocab().items():
        if token in added:
            yield token_id, token.encode("utf-8", "surrogatepass"), False
        elif byte_of is not None:
            yield token_id, bytes(byte_of[character] for character in token), False
        elif "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x"):
            yield token_id, bytes([int(token[3:5], 16)]), True
        else:
            spaced = token.replace(_SPACE, " ") if kinds else token
            yield token_id, spaced.encode("utf-8", "surrogatepass"), False


def _kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    if decoder is not None:
        yield str(decoder["type"])
        for part in decoder.get("decoders", ()):
            yield from _kinds(part)


def _byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _shown(raw: bytes) -> str:
    return repr(raw.decode("utf-8", "backslashreplace"))
