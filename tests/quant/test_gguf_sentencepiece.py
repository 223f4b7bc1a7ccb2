"""SentencePiece tokenizers: llama.cpp cuts text as the checkpoint's tokenizer does, or there is no file."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from decant.errors import QuantizeError
from decant_quant.method import build_method
from decant_quant.methods.gguf_tokenizer import read_vocabulary
from decant_quant.methods.token_check import compare_tokens
from decant_quant.options import Options

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} [/{{ m.role }}]{% endfor %}"
CHAT = [{"role": "user", "content": "Where is the station?  Grüße 🙂\n"}]
Load = Callable[[Path], AbstractContextManager[Any]]
_WORDS = [
    "the",
    "station",
    "where",
    "is",
    "in",
    "er",
    "st",
    "at",
    "ion",
    "th",
    "▁the",
    "▁is",
    "ss",
    "====",
    "aa",
]


def pieces() -> list[str]:
    """A vocabulary in the order of its scores, best first, as SentencePiece trains one: every way to make a
    piece goes through pieces."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyzABCDEG .,?!=0123456789äöüßé", "你", "好"]
    joined: dict[str, None] = {}
    for word in ["▁▁", "▁▁▁▁", *_WORDS, "▁where", "▁station", "==", "aaaa", "▁in"]:
        for end in range(2, len(word) + 1):
            joined[word[:end]] = None
    return [*sorted(joined, key=len), *dict.fromkeys(letters)]


def spm_tokenizer(style: str, **settings: Any) -> Any:
    """A tokenizer as transformers makes it from a SentencePiece model; `style` is where it puts spaces."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    texts = ["<unk>", "<s>", "</s>", *byte_tokens, *pieces()]
    vocabulary = {text: index for index, text in enumerate(texts)}
    merges = [
        (text[:cut], text[cut:])
        for text in pieces()
        for cut in range(1, len(text))
        if text[:cut] in vocabulary and text[cut:] in vocabulary
    ]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    plain = Tokenizer(model)
    space = normalizers.Replace(" ", "▁")
    if style == "legacy":
        plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
    elif style == "gemma":
        plain.normalizer = space
        plain.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        plain.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=style, split=False)
    plain.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    given = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, **settings}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **given)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize("style", ["legacy", "gemma", "never", "first"])
def test_thousands_of_texts_are_cut_alike(tmp_path: Path, tiny: Any, llama_cpp: Load, style: str) -> None:
    tokenizer = spm_tokenizer(style)
    if style != "legacy":
        tokenizer.add_tokens(["<tool>"])
    tiny.save(tmp_path / "model", "Llama", tokenizer)
    folder = tmp_path / "gguf"
    folder.mkdir()
    written = build_method("gguf:F16", Options(compare_tokens=True)).prepare(tmp_path / "model").write(folder)
    expected = tokenizer.apply_chat_template(CHAT, return_dict=False)
    with llama_cpp(folder / "model.gguf") as engine:
        assert engine.tokenize(engine.render(CHAT)) == expected
    assert any("no space before it" in note for note in written.notes) == (style == "first")


def test_a_file_that_would_cut_text_otherwise_is_refused_with_the_text(tmp_path: Path, tiny: Any) -> None:
    tiny.save(tmp_path / "model", "Llama", spm_tokenizer("legacy"))
    file = tmp_path / "model" / "tokenizer.json"
    vocabulary = read_vocabulary(tmp_path / "model", size=512)
    tree = json.loads(file.read_text())
    tree["normalizer"]["normalizers"].pop(0)
    file.write_text(json.dumps(tree))
    with pytest.raises(QuantizeError, match=r"llama\.cpp cuts .* into other tokens"):
        compare_tokens(tmp_path / "model", vocabulary)


@pytest.mark.parametrize(
    ("style", "change", "said"),
    [
        ("always", {}, "does not prepare text"),
        ("legacy", {"normalizer": {"type": "Lowercase"}}, "does not prepare text"),
        ("legacy", {"model.merges": [["t", "h"]]}, "not those of a SentencePiece model"),
        ("legacy", {"model.dropout": 0.1}, "SentencePiece setting dropout"),
        ("first", {"chat": "{{ messages[0].content }}"}, "begin the chat template with a special token"),
    ],
)
def test_what_llama_cpp_would_cut_otherwise_is_refused_by_name(
    tmp_path: Path, tiny: Any, edit_json: Any, style: str, change: dict[str, Any], said: str
) -> None:
    tokenizer = spm_tokenizer(style)
    tokenizer.chat_template = change.pop("chat", TEMPLATE)
    tiny.save(tmp_path / "model", "Llama", tokenizer)
    edit_json(tmp_path / "model" / "tokenizer.json", change)
    with pytest.raises(QuantizeError, match=said):
        build_method("gguf:F16").prepare(tmp_path / "model")
