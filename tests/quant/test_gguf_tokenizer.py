"""llama.cpp tokenizes a GGUF file of ours as transformers tokenizes the checkpoint, or there is no file."""

import json
import random
import sys
import unicodedata
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from decant.errors import QuantizeError
from decant_quant.method import build_method

CHAT = [
    {"role": "user", "content": "Hi, is 12 > 7? é"},
    {"role": "assistant", "content": "Yes.\n"},
    {"role": "user", "content": " And <|end|> 你好? "},
]
ODD = [
    "",
    " ",
    "  \n\t \r\n\n x",
    "don't DON'T we'LL 's 'S",
    "1234567890 ½ ² Ⅷ ٣٤",
    "e\u0301 é ß ſ İ ǅ ʰ",
    "👩‍👩‍👧 🏳️‍🌈",
]
MORE = [
    "a<|end|>b <|user|> <|no such|>",
    "\u00a0\u3000\u2028x",
    "한국어 हिन्दी العربية ไทย",
    "x" * 300,
    "\x00\x7f\ufffd",
]

Load = Callable[[Path], AbstractContextManager[Any]]


def random_strings(count: int) -> list[str]:
    """Text of every script, of characters that Python's Unicode tables know: engines differ on newer ones."""
    rng = random.Random(0)
    known = [
        chr(c) for c in range(0x20, sys.maxunicode) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")
    ]
    pools = [known[:95], known[:95], [" ", "\n", "'", "7"], known[:2000], known]
    return ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 60))) for _ in range(count)]


def convert(model: Path) -> tuple[Path, tuple[str, ...]]:
    folder = model.parent / "gguf"
    folder.mkdir()
    written = build_method("gguf:F16").prepare(model).write(folder)
    return folder / "model.gguf", written.notes


def refusal(model: Path) -> str:
    with pytest.raises(QuantizeError) as refused:
        build_method("gguf:F16").prepare(model)
    return str(refused.value)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "qwen35", "llama-bpe"])
def test_token_ids_are_equal_on_any_text(tmp_path: Path, llama_cpp: Load, tiny: Any, pre: str) -> None:
    tokenizer = tiny.tokenizer(pre)
    tiny.save(tmp_path / "model", "Llama", tokenizer)
    file, notes = convert(tmp_path / "model")
    with llama_cpp(file) as engine:
        different = [
            text
            for text in ODD + MORE + random_strings(400)
            if engine.tokenize(text) != tokenizer.encode(text)
        ]
    assert different == []
    assert notes == ()


@pytest.mark.parametrize(
    ("settings", "template"),
    [
        ({}, "{messages}"),
        ({"bos_token": "<|bos|>"}, "{{{{ bos_token }}}}{messages}"),
        ({"bos_token": "<|bos|>", "add_bos_token": True}, "{{{{ bos_token }}}}{messages}"),
        ({"bos_token": "<|bos|>", "add_bos_token": True, "add_eos_token": True}, "{messages}"),
    ],
)
def test_a_rendered_chat_has_the_ids_that_training_saw(
    tmp_path: Path, llama_cpp: Load, tiny: Any, settings: dict[str, Any], template: str
) -> None:
    tokenizer = tiny.tokenizer(**settings)
    tokenizer.chat_template = template.format(messages=tokenizer.chat_template)
    tiny.save(tmp_path / "model", "Llama", tokenizer)
    file, _ = convert(tmp_path / "model")
    expected = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    with llama_cpp(file) as engine:
        assert engine.tokenize(engine.render(CHAT)) == expected


def test_a_bos_that_the_chat_template_leaves_out_is_left_out_of_plain_text_too_and_said(
    tmp_path: Path, tiny: Any
) -> None:
    tiny.save(tmp_path / "model", "Llama", tiny.tokenizer(bos_token="<|bos|>", add_bos_token=True))
    _, notes = convert(tmp_path / "model")
    assert notes == ("plain text gets no <|bos|>: the chat template has none, llama.cpp keeps one rule",)


def test_tokens_added_later_are_matched_whole_and_rows_without_a_token_never(
    tmp_path: Path, llama_cpp: Load, tiny: Any
) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<tool>", "naïve café"])
    tiny.save(tmp_path / "model", "Llama", tokenizer)
    text = "a <tool>b naïve café <no token 500> [PAD500]"
    with llama_cpp(convert(tmp_path / "model")[0]) as engine:
        ids = engine.tokenize(text)
    assert ids == tokenizer.encode(text)
    assert (
        set(tokenizer.convert_tokens_to_ids(["<tool>", "naïve café"])) < set(ids) < set(range(len(tokenizer)))
    )


def test_decoding_stops_at_every_end_token_that_generation_config_names(
    model_folder: Path, llama_cpp: Load, edit_json: Any
) -> None:
    edit_json(model_folder / "generation_config.json", {"eos_token_id": [3, 2, 300]})
    import gguf

    fields = gguf.GGUFReader(convert(model_folder)[0]).fields
    ends = [fields[f"tokenizer.ggml.{role}_token_id"].contents() for role in ("eos", "eot", "eom")]
    assert ends == [3, 2, 300]


def test_a_vocabulary_that_its_merges_reach_may_ignore_them(model_folder: Path, edit_json: Any) -> None:
    edit_json(model_folder / "tokenizer.json", {"model.ignore_merges": True})
    assert build_method("gguf:F16").prepare(model_folder).size_bytes > 0


def test_a_vocabulary_that_its_merges_do_not_reach_may_not(model_folder: Path, edit_json: Any) -> None:
    merges = json.loads((model_folder / "tokenizer.json").read_text())["model"]["merges"]
    edit_json(model_folder / "tokenizer.json", {"model.ignore_merges": True, "model.merges": merges[:9]})
    assert "the merges do not make token" in refusal(model_folder)


def test_an_unknown_pre_tokenizer_is_refused_with_what_to_do(tmp_path: Path, tiny: Any) -> None:
    tiny.save(tmp_path / "model", "Llama", tiny.tokenizer(r"\S+|\s+"))
    said = refusal(tmp_path / "model")
    assert "no pre-tokenizer that splits like this one" in said
    assert "--engine transformers" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.type": "WordLevel"}, "a WordLevel tokenizer cannot be written"),
        ({"model.byte_fallback": True}, "256 of the 256 byte tokens are missing"),
        ({"model.vocab": {"a": 0}}, "of the 256 bytes have no token"),
        ({"model.merges": []}, "has no merges"),
        ({"model.merges": ["! !"]}, "makes no token of the vocabulary"),
        ({"model.end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        ({"pre_tokenizer.add_prefix_space": True}, "no pre-tokenizer that splits"),
        ({"added_tokens": [{"id": 3, "content": "<|end|>", "lstrip": True}]}, "minds the white space"),
        ({"added_tokens": [{"id": 500, "content": "A"}]}, "two ids have the token text 'A'"),
        ({"added_tokens": [{"id": 512, "content": "<new>"}]}, "token id 512 but the embedding only 512 rows"),
        ({"post_processor": {"type": "BertProcessing"}}, "post-processor"),
    ],
)
def test_a_tokenizer_that_gguf_cannot_carry_is_refused_by_what_is_odd(
    model_folder: Path, edit_json: Any, changes: dict[str, Any], said: str
) -> None:
    edit_json(model_folder / "tokenizer.json", changes)
    assert said in refusal(model_folder)


def test_a_template_that_wants_a_bos_which_the_tokenizer_lacks_is_refused(tmp_path: Path, tiny: Any) -> None:
    tiny.save(
        tmp_path / "model", "Llama", tiny.tokenizer(template="{{ bos_token }}{{ messages[0].content }}")
    )
    assert "names bos_token, the tokenizer has none" in refusal(tmp_path / "model")


def test_a_model_without_an_end_token_is_refused(model_folder: Path, edit_json: Any) -> None:
    edit_json(model_folder / "tokenizer_config.json", {"eos_token": None})
    for name in ("generation_config.json", "config.json"):
        edit_json(model_folder / name, {"eos_token_id": None})
    assert "ends an answer; name eos_token" in refusal(model_folder)
