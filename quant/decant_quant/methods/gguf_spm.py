"""SentencePiece-style BPE of a tokenizer.json as llama.cpp needs it: a score per token instead of merges.

SentencePiece joins any two neighbours whose joint text is a token, best score first; tokenizer.json lists the
pairs and their order. Both say the same only if every such pair is listed, in the order of the joint text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from decant.errors import QuantizeError
from decant_quant.methods.gguf_words import Words, token_table

_SPACE = "▁"
_ELSEWHERE = "serve the unquantized checkpoint with `--engine transformers`"
# Where tokenizer.json puts a space that the text does not have: before every part between special tokens,
# before the text, or nowhere.
Prefix = Literal["every part", "text", "nowhere"]

_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
# Gemma's: no space is left to split at once the normalizer has run.
_IDLE_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def is_spm(model: Mapping[str, Any]) -> bool:
    """Whether the model half of tokenizer.json is SentencePiece's kind of BPE."""
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def read_spm(definition: Mapping[str, Any], *, file: Path, size: int, opens_special: bool | None) -> Words:
    """Reads tokenizer.json for an embedding of `size` rows; QuantizeError when GGUF cannot carry it.

    `opens_special`: whether rendered chats begin with a special token, None where there is no chat template.
    """
    model: dict[str, Any] = definition["model"]
    _refuse_odd(model, file)
    prefix = _checked_prefix(definition, file=file, opens_special=opens_special)
    unknown = model.get("unk_token")
    tokens, types = _typed_tokens(definition, file=file, size=size)
    added: list[dict[str, Any]] = definition.get("added_tokens") or []
    apart = {str(item["content"]) for item in added} | {unknown}
    words = [text for text in model["vocab"] if text not in apart and _byte(text) is None]
    scores = _scores(words, _pairs(model), file)
    note = "plain text gets no space before it, which training put there: chats begin with a special token"
    return Words(
        model="llama",
        pre="default",
        tokens=tokens,
        types=types,
        scores=tuple(scores.get(text, 0.0) for text in tokens),
        space_prefix=prefix == "every part",
        unknown=tokens.index(unknown) if unknown in tokens else None,
        plain_differs=prefix == "text",
        notes=(note,) if prefix == "text" else (),
    )


def _typed_tokens(
    definition: Mapping[str, Any], *, file: Path, size: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts and types by id. The unknown token has a type of its own, added or not."""
    from gguf import TokenType

    def kind(text: str) -> TokenType:
        return TokenType.NORMAL if _byte(text) is None else TokenType.BYTE

    unknown = definition["model"].get("unk_token")
    tokens, types = token_table(definition, file=file, size=size, kind=kind)
    typed = zip(tokens, types, strict=True)
    return tokens, tuple(int(TokenType.UNKNOWN) if text == unknown else found for text, found in typed)


def _checked_prefix(definition: Mapping[str, Any], *, file: Path, opens_special: bool | None) -> Prefix:
    """Where spaces go; QuantizeError where llama.cpp would put them elsewhere."""
    prefix = _prefix(definition)
    if prefix is None:
        raise QuantizeError(
            f"{file}: llama.cpp does not prepare text for SentencePiece as this normalizer and pre-tokenizer"
            f" do; {_ELSEWHERE}"
        )
    if prefix == "text" and not opens_special:
        raise QuantizeError(
            f"{file}: puts a space before a text and not behind special tokens, llama.cpp does both or"
            f" neither: begin the chat template with a special token such as bos_token, or {_ELSEWHERE}"
        )
    return prefix


def _refuse_odd(model: Mapping[str, Any], file: Path) -> None:
    settings = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    odd = [key for key in settings if model.get(key)]
    if odd:
        raise QuantizeError(f"{file}: GGUF cannot carry the SentencePiece setting {odd[0]}; {_ELSEWHERE}")
    absent = 256 - len({_byte(text) for text in model["vocab"]} - {None})
    if absent:
        raise QuantizeError(
            f"{file}: {absent} of the 256 byte tokens are missing, so some text has no ids; train the"
            f" tokenizer with byte fallback"
        )


def _byte(text: str) -> int | None:
    """The byte that a token such as <0x0A> stands for."""
    if len(text) != 6 or not text.startswith("<0x") or not text.endswith(">"):
        return None
    try:
        return int(text[3:5], 16)
    except ValueError:
        return None


def _prefix(definition: Mapping[str, Any]) -> Prefix | None:
    normalizer: dict[str, Any] = definition.get("normalizer") or {}
    splitter: Any = definition.get("pre_tokenizer")
    steps: list[Any] = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if splitter is None and steps == [_PREPEND, _REPLACE]:
        return "every part"
    if splitter in (None, _IDLE_SPLIT) and steps == [_REPLACE]:
        return "nowhere"
    match splitter:
        case {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": scheme} if not steps:
            found: dict[str, Prefix] = {"first": "text", "never": "nowhere"}
            return found.get(scheme)
        case _:
            return None


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges: list[str | list[str]] = model.get("merges") or []
    listed = (pair.split(" ") if isinstance(pair, str) else pair for pair in merges)
    return [(left, right) for left, right in listed]


def _scores(words: Sequence[str], pairs: Sequence[tuple[str, str]], file: Path) -> dict[str, float]:
    """A falling score for the result of each merge; QuantizeError where scores cannot say what merges say."""
    order = list(dict.fromkeys(left + right for left, right in pairs))
    ranks = {text: rank for rank, text in enumerate(order)}
    by_result = [ranks[left + right] for left, right in pairs]
    known, listed = set(words), set(pairs)
    unlisted = next(
        (
            (text[:cut], text[cut:])
            for text in words
            for cut in range(1, len(text))
            if text[:cut] in known and text[cut:] in known and (text[:cut], text[cut:]) not in listed
        ),
        None,
    )
    if by_result != sorted(by_result) or unlisted is not None:
        why = (
            f"{unlisted[0]!r} and {unlisted[1]!r} are not joined"
            if unlisted
            else "the order is not by result"
        )
        raise QuantizeError(
            f"{file}: its merges are not those of a SentencePiece model ({why}), which is all that llama.cpp"
            f" knows with byte fallback; {_ELSEWHERE}"
        )
    return {text: -float(rank) for text, rank in ranks.items()}
