"""A tokenizer's tokens as a GGUF file holds them, whatever its kind."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decant.errors import QuantizeError

if TYPE_CHECKING:
    import gguf


@dataclass(frozen=True, slots=True)
class Words:
    """`model` and `pre` are llama.cpp's names for how text is cut; `tokens` and `types` are one per embedding
    row. `space_prefix`: llama.cpp puts a space before a text, and behind every special token in it.
    `plain_differs`: only text that begins with a special token is cut as the tokenizer cuts it.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space_prefix: bool | None = None
    unknown: int | None = None
    plain_differs: bool = False
    notes: tuple[str, ...] = ()

    def add_to(self, writer: "gguf.GGUFWriter") -> None:
        """Adds the tokens' metadata to a file that is being written."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        if self.unknown is not None:
            writer.add_unk_token_id(self.unknown)


def token_table(
    definition: Mapping[str, Any],
    *,
    file: Path,
    size: int,
    kind: "Callable[[str], gguf.TokenType] | None" = None,
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts and types by id; embedding rows without a token get a text that no input can match.

    `kind` gives the type of a token of the vocabulary that was not added to it; all are normal without.
    """
    from gguf import TokenType

    vocabulary: Mapping[str, int] = definition["model"]["vocab"]
    named = {i: (text, kind(text) if kind else TokenType.NORMAL) for text, i in vocabulary.items()}
    added: Iterable[Mapping[str, Any]] = definition.get("added_tokens") or []
    for item in added:
        if any(item.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            raise QuantizeError(
                f"{file}: added token {item['content']!r} minds the white space around it, which GGUF cannot"
                f" carry; add it without lstrip, rstrip and single_word"
            )
        special = TokenType.CONTROL if item.get("special") else TokenType.USER_DEFINED
        named[item["id"]] = (item["content"], special)
    if max(named) >= size:
        raise QuantizeError(
            f"{file}: has token id {max(named)} but the embedding only {size} rows;"
            f" call resize_token_embeddings and save the model again"
        )
    # Only an added token may hold a space, so no text is ever cut into such a token.
    entries = [named.get(i, (f"<no token {i}>", TokenType.UNUSED)) for i in range(size)]
    texts = tuple(text for text, _ in entries)
    if len(set(texts)) < size:
        twice = next(text for text in texts if texts.count(text) > 1)
        raise QuantizeError(f"{file}: two ids have the token text {twice!r}; rename the added token")
    return texts, tuple(int(found) for _, found in entries)
