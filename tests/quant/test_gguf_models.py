"""A GGUF file of ours answers in llama.cpp as the checkpoint answers in transformers."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from decant_quant.method import build_method
from decant_quant.methods.gguf_mixes import MIXES

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

Load = Callable[[Path], AbstractContextManager[Any]]


def convert(model: Path, method: str) -> Path:
    folder = model.parent / method.replace(":", "-")
    folder.mkdir()
    build_method(method).prepare(model).write(folder)
    return folder / "model.gguf"


def largest_gap(load: Load, model: Any, file: Path) -> float:
    ids = torch.randint(5, 480, (1, 150), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.log_softmax(model(ids).logits[0, -1].float(), -1)
    with load(file) as engine:
        found = engine.logprobs(ids[0].tolist(), vocabulary=len(expected))
    return float((torch.tensor(found) - expected).abs().max())


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {}),
        ("Llama", {"tie_word_embeddings": True, "head_dim": 32}),
        ("Llama", {"attention_bias": True, "mlp_bias": True}),
        ("Llama", {"rope_parameters": LLAMA3}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        ("Llama", {"rope_parameters": YARN}),
        ("Mistral", {"sliding_window": None, "head_dim": 32}),
        ("Qwen2", {"rms_norm_eps": 1e-3}),
        ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
        ("Qwen3", {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
        ("Mixtral", {"num_local_experts": 4, "sliding_window": None}),
        ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 96}),
        ("Qwen3Moe", {**EXPERTS, "norm_topk_prob": True, "head_dim": 32}),
    ],
)
def test_every_family_and_rope_answers_as_in_transformers(
    tmp_path: Path, llama_cpp: Load, tiny: Any, family: str, changes: dict[str, Any]
) -> None:
    model = tiny.save(tmp_path / "model", family, tiny.tokenizer(), **changes)
    assert largest_gap(llama_cpp, model, convert(tmp_path / "model", "gguf:F16")) < 0.02


@pytest.mark.parametrize(
    ("method", "allowed"),
    [
        *[("gguf:F32", 0.02), ("gguf:BF16", 0.1), ("gguf:F16", 0.02), ("gguf:Q8_0", 0.5)],
        *[("gguf:Q5_1", 1.5), ("gguf:Q5_0", 2.0), ("gguf:Q4_1", 3.0), ("gguf:Q4_0", 4.0)],
    ],
)
def test_every_number_format_loads_and_stays_near_the_checkpoint(
    tmp_path: Path, llama_cpp: Load, tiny: Any, method: str, allowed: float
) -> None:
    model = tiny.save(tmp_path / "model", "Llama", tiny.tokenizer())
    assert largest_gap(llama_cpp, model, convert(tmp_path / "model", method)) < allowed


def test_every_method_of_the_table_says_what_it_will_need_and_writes_no_more(model_folder: Path) -> None:
    for method in (f"gguf:{name}" for name, mix in MIXES.items() if not mix.needs_importance):
        prepared = build_method(method).prepare(model_folder)
        folder = model_folder.parent / method.replace(":", "-")
        folder.mkdir()
        written = prepared.write(folder)
        on_disk = sum(file.stat().st_size for file in folder.iterdir())
        assert written.kind == "gguf"
        assert 0.4 * prepared.size_bytes < on_disk <= prepared.size_bytes


def test_the_shipped_teacher_says_the_same_in_llama_cpp(
    repository: Path, tmp_path: Path, llama_cpp: Load
) -> None:
    weights = repository / "distill" / "decant_distill" / "demo" / "weights" / "teacher"
    if not weights.is_dir():
        pytest.skip("the demo's weights are not built")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "teacher").symlink_to(weights)
    tokenizer: Any = AutoTokenizer.from_pretrained(weights)
    model: Any = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    with llama_cpp(convert(tmp_path / "teacher", "gguf:F16")) as engine:
        for start in (3, 8):
            question = f"Mia's display shows {start}. First it goes up by 5. Which digit does it show?"
            messages = [{"role": "user", "content": question}]
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            answer = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :]
            assert engine.tokenize(engine.render(messages)) == ids
            assert engine.decode(ids, max_tokens=40)[: len(answer) - 1] == answer.tolist()[:-1]
