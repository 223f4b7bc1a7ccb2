"""A student base of a few thousand weights and rows for it to learn from, made on the spot."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distill.loopback_teacher import Teacher, serving


def row(number: int, generator: random.Random) -> dict[str, Any]:
    """One curated row of a little counting task."""
    shown, steps = (
        generator.randrange(10),
        [generator.randrange(1, 9) for _ in range(generator.randrange(1, 5))],
    )
    value, reasoning = shown, [f"Start {shown}."]
    for step in steps:
        reasoning.append(f"{value} plus {step} is {(value + step) % 10}.")
        value = (value + step) % 10
    question = " ".join([f"It shows {shown}.", *(f"It goes up by {step}." for step in steps), "What now?"])
    return {
        "id": f"r{number}",
        "prompt": [{"role": "user", "content": question}],
        "reasoning": " ".join(reasoning),
        "answer": str(value),
    }


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    """An endpoint on a port of its own, told by each test how to answer."""
    with serving(Teacher()) as one:
        yield one


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    generator = random.Random(0)
    return [row(number, generator) for number in range(200)]


@pytest.fixture(scope="session")
def curated(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows as a curated dataset file."""
    path = tmp_path_factory.mktemp("curated") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def many_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More rows than a short run reads once: none comes twice."""
    generator = random.Random(1)
    path = tmp_path_factory.mktemp("curated") / "many.jsonl"
    path.write_text("".join(json.dumps(row(number, generator)) + "\n" for number in range(1500)))
    return path


@pytest.fixture(scope="session")
def student_base(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 64 dimensions and two layers with random weights, and a tokenizer with a chat template."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from decant_distill.tokenizer import train_tokenizer

    texts = (f"{row['prompt'][0]['content']} {row['reasoning']}\nAnswer: {row['answer']}" for row in rows)
    tokenizer = train_tokenizer(texts)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("base") / "student-base"
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        # Every layer has its say and the answers are clear-cut: golden prompts have something to break.
        for name, weight in model.named_parameters():
            weight.mul_(20 if "lm_head" in name else 5 if weight.dim() == 2 else 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def t5_base(student_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of two layers a side with random weights; its tokenizer has no chat template, as FLAN-T5's."""
    return _random_model(
        "t5",
        student_base,
        tmp_path_factory.mktemp("t5") / "t5-base",
        d_model=64,
        d_kv=32,
        d_ff=128,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )


def _random_model(family: str, student_base: Path, folder: Path, **sizes: Any) -> Path:
    """A model of a family with random weights, and the little student's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student_base)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    torch.manual_seed(0)
    loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = loader.from_config(config)
    model.save_pretrained(folder)
    if config.is_encoder_decoder:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "mistral": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "phi3": {"bos_token_id": None},
}


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def family_base(
    request: pytest.FixtureRequest, student_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A decoder of each family with random weights. Phi-4 is of the architecture that is named phi3."""
    family = request.param
    return _random_model(
        family,
        student_base,
        tmp_path_factory.mktemp(family) / "base",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        **FAMILIES[family],
    )
