"""Token ids of a file of ours in llama.cpp beside those of the tokenizer that it was made from.

A GGUF file with the vocabulary and next to no weights is loaded by a child process, so that the comparison is
over before the real weights are touched, and a crash of the engine is a message.
"""

import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decant.artifact import TOKENIZER_FILE
from decant.errors import MissingExtraError, QuantizeError
from decant.processes import end_with_parent
from decant_quant.methods.gguf_families import Dimensions
from decant_quant.methods.gguf_metadata import add_metadata
from decant_quant.methods.gguf_rope import Rope

if TYPE_CHECKING:
    from decant_quant.methods.gguf_tokenizer import Vocabulary

_LIMIT_S = 300.0
_WIDTH = 32
_STRINGS = 2000
# What has gone wrong in tokenizers: runs of white space and of one character, odd case, digits of all kinds,
# marks, joined emoji, texts of tokens, control characters.
_ODD = (
    *("", " ", "  ", "\n", "\n\n \n", "\t\tx", " a", "a ", "  a  b", "\r\n", "\u00a0\u3000\u2028x"),
    *("don't DON'T we'LL 's", "1234567890 ½ ² Ⅷ ٣٤", "e\u0301 é ß ſ İ ǅ ʰ", "\x00\x01\x1f\x7f\ufffd"),
    *("👩‍👩‍👧 🏳️‍🌈 🙂", "한국어 हिन्दी العربية ไทย", "<0x41> <unk> ▁ ▁▁", "https://a.b/c?d=e&f=%20"),
    *(
        f"{text * count}."
        for text in (" ", "\n", "=", "a", "ab", "0", "\t", "▁")
        for count in (2, 3, 5, 16, 33)
    ),
)


def compare_tokens(folder: Path, vocabulary: "Vocabulary") -> tuple[str, ...]:
    """Compares a few thousand strings; QuantizeError with the first that differs, a note where nothing can be
    compared.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        return ("token ids were not compared in llama.cpp: that needs `pip install 'decant[llamacpp]'`",)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtraError("tokenizers", "gguf") from None
    own: Any = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    own.no_truncation()
    own.no_padding()
    texts = _texts(vocabulary)
    expected: list[list[int]] = [own.encode(text, add_special_tokens=False).ids for text in texts]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "vocabulary.gguf"
        _write_vocabulary(file, vocabulary)
        found = _engine_ids(file, texts)
    for text, wanted, got in zip(texts, expected, found, strict=True):
        if wanted != got:
            at = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), 0)
            raise QuantizeError(
                f"{folder / TOKENIZER_FILE}: llama.cpp cuts {text!r} into other tokens, from token {at} on"
                f" {got[at : at + 4]} instead of {wanted[at : at + 4]}; serve the unquantized checkpoint with"
                f" `--engine transformers`"
            )
    return ()


def _texts(vocabulary: "Vocabulary") -> list[str]:
    """Odd ones, random ones of every script, and special tokens within text; the same ones each time."""
    rng = random.Random(0)
    # Tokenizers differ on characters that one's tables do not know yet: those of an old table are known.
    table = unicodedata.ucd_3_2_0
    known = [chr(c) for c in range(0x20, 0x2FFFF) if table.category(chr(c)) not in ("Cn", "Cs", "Co")]
    pools = [known[:95], known[:95], [" ", "\n", "'", "7"], known[:2000], known]
    drawn = [
        "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 60))) for _ in range(_STRINGS)
    ]
    specials = vocabulary.special_texts
    mixed = [
        f"{rng.choice(drawn)}{rng.choice(specials)}{rng.choice(drawn)}" for _ in range(100 * bool(specials))
    ]
    texts = [*_ODD, *drawn, *specials[:50], *mixed]
    if vocabulary.words.plain_differs:
        # Only chats are promised, which begin with a special token.
        texts = [f"{rng.choice(specials)}{text}" for text in texts]
    return [unicodedata.normalize("NFC", text) for text in texts]


def _write_vocabulary(file: Path, vocabulary: "Vocabulary") -> None:
    """A model of one layer, all zeros, that llama.cpp loads in an instant."""
    import gguf

    rows = len(vocabulary.words.tokens)
    sizes = Dimensions(rows, _WIDTH, _WIDTH, 1, 1, 1, _WIDTH, 256, 1e-6)
    square, vector = (_WIDTH, _WIDTH), (_WIDTH,)
    shapes = {"token_embd": (rows, _WIDTH), "output_norm": vector, "blk.0.attn_norm": vector}
    shapes |= {f"blk.0.attn_{name}": square for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_norm": vector, **{f"blk.0.ffn_{name}": square for name in ("gate", "up", "down")}}
    writer = gguf.GGUFWriter(file, "llama")
    try:
        add_metadata(writer, sizes, Rope(10000.0))
        vocabulary.add_to(writer)
        for name, shape in shapes.items():
            dtype = np.float16 if len(shape) > 1 else np.float32
            writer.add_tensor(f"{name}.weight", np.zeros(shape, dtype))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _engine_ids(file: Path, texts: Sequence[str]) -> list[list[int]]:
    command = [sys.executable, "-m", "decant_quant.methods.token_child", str(file)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(list(texts)).encode(),
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
            preexec_fn=end_with_parent(),
        )
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        raise QuantizeError(
            f"llama.cpp could not load the tokenizer of {file.name}; serve the unquantized checkpoint with"
            f" `--engine transformers`"
        ) from None
