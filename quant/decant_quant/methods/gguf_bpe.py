"""The model half of tokenizer.json, byte-level BPE, as llama.cpp needs it.

llama.cpp implements the byte-level pre-tokenizers that it knows by name. What tokenizer.json may ask for
beyond that has no place in a GGUF file, so it is an error here instead of other token ids later.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from decant.errors import MissingExtraError, QuantizeError
from decant_quant.methods.gguf_pretokenizers import KNOWN, PreTokenizer, recognise
from decant_quant.methods.gguf_words import Words, token_table

_ELSEWHERE = "serve the unquantized checkpoint with `--engine transformers`"
_RETRAIN = f"train it as byte-level BPE that splits like {', '.join(k.name for k in KNOWN)}, or {_ELSEWHERE}"

# GPT-2's printable stand-ins for the 256 bytes: a byte that prints is itself, the others follow from U+0100.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_ALPHABET = [*map(chr, _PRINTABLE), *(chr(0x100 + n) for n in range(256 - len(_PRINTABLE)))]


def read_bpe(definition: Mapping[str, Any], *, file: Path, size: int) -> Words:
    """Reads tokenizer.json for an embedding of `size` rows; QuantizeError when GGUF cannot carry it."""
    model: dict[str, Any] = definition.get("model") or {}
    _refuse_other_models(model, file)
    pre = recognise(definition.get("pre_tokenizer"))
    if pre is None:
        raise QuantizeError(f"{file}: llama.cpp has no pre-tokenizer that splits like this one; {_RETRAIN}")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    orphan = next((pair for pair in merges if "".join(pair) not in model["vocab"]), None)
    if orphan is not None:
        raise QuantizeError(
            f"{file}: merge {orphan} makes no token of the vocabulary; save the tokenizer again"
        )
    if bool(model.get("ignore_merges")) != pre.ignores_merges:
        added: list[dict[str, Any]] = definition.get("added_tokens") or []
        words = set(model["vocab"]) - {str(item["content"]) for item in added}
        _refuse_unreachable(words, model["vocab"], merges, pre=pre, file=file)
    tokens, types = token_table(definition, file=file, size=size)
    return Words(
        model="gpt2",
        pre=pre.name,
        tokens=tokens,
        types=types,
        merges=tuple(f"{left} {right}" for left, right in merges),
        notes=_normalizer_notes(definition, file),
    )


def _refuse_other_models(model: Mapping[str, Any], file: Path) -> None:
    kind = model.get("type")
    if kind != "BPE":
        raise QuantizeError(f"{file}: a {kind} tokenizer cannot be written to GGUF here; {_RETRAIN}")
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if odd:
        raise QuantizeError(f"{file}: GGUF cannot carry the BPE setting {odd[0]}; {_RETRAIN}")
    absent = sum(char not in model["vocab"] for char in _ALPHABET)
    if absent:
        raise QuantizeError(
            f"{file}: {absent} of the 256 bytes have no token, so some text has no ids;"
            f" train the tokenizer with initial_alphabet=ByteLevel.alphabet()"
        )
    if not model.get("merges"):
        raise QuantizeError(
            f"{file}: has no merges, which llama.cpp needs; train it with a larger vocabulary"
        )


def _normalizer_notes(definition: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    normalizer: dict[str, Any] | None = definition.get("normalizer")
    if not normalizer:
        return ()
    steps: list[dict[str, Any]] = normalizer.get("normalizers", [normalizer])
    odd = [step["type"] for step in steps if step["type"] != "NFC"]
    if odd:
        raise QuantizeError(f"{file}: llama.cpp does not apply the normalizer {odd[0]}; {_RETRAIN}")
    return ("llama.cpp leaves out the tokenizer's NFC normalization: send text in NFC",)


def _refuse_unreachable(
    words: Iterable[str],
    vocabulary: dict[str, int],
    merges: Sequence[Sequence[str]],
    *,
    pre: PreTokenizer,
    file: Path,
) -> None:
    """Skipping the merges for a word that is a token is harmless if they lead to that token anyway."""
    try:
        from tokenizers import models
    except ImportError:
        raise MissingExtraError("tokenizers", "gguf") from None
    pairs = [(left, right) for left, right in merges]
    bpe: Any = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=False)
    for word in words:
        if [piece.value for piece in bpe.tokenize(word)] != [word]:
            raise QuantizeError(
                f"{file}: ignore_merges is {not pre.ignores_merges}, in llama.cpp's {pre.name} it is"
                f" {pre.ignores_merges}, and the merges do not make token {word!r}; {_ELSEWHERE}"
            )
