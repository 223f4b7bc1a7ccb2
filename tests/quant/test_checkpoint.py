"""What a checkpoint folder must be like before anything is converted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from decant.errors import QuantizeError
from decant_quant.checkpoint import open_checkpoint
from decant_quant.method import build_method


def refusal(model: Path, method: str = "gguf:F16") -> str:
    folder = model.parent / "gguf"
    folder.mkdir()
    with pytest.raises(QuantizeError) as refused:
        build_method(method).prepare(model).write(folder)
    return str(refused.value)


def rewrite(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_float_type_is_read_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(7, 5).to(dtype)
    safetensors.torch.save_file({"a": torch.zeros(3), "x": values}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    tensor = open_checkpoint(tmp_path).tensors["x"]
    assert tensor.widen(tensor.read()).tolist() == values.float().tolist()


def test_shards_make_the_same_file_as_one_piece(tmp_path: Path, tiny: Any) -> None:
    model = tiny.save(tmp_path / "model", "Qwen2", tiny.tokenizer())
    tiny.save(tmp_path / "sharded", "Qwen2", tiny.tokenizer())
    (tmp_path / "sharded" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    for name in ("model", "sharded"):
        (tmp_path / f"{name}-gguf").mkdir()
        build_method("gguf:Q4_0").prepare(tmp_path / name).write(tmp_path / f"{name}-gguf")
    written = [(tmp_path / f"{name}-gguf" / "model.gguf").read_bytes() for name in ("model", "sharded")]
    assert written[0] == written[1]


def test_rows_that_are_no_whole_blocks_stay_in_16_bits_and_are_named(tmp_path: Path, tiny: Any) -> None:
    tiny.save(tmp_path / "model", "Llama", tiny.tokenizer(), intermediate_size=80)
    (tmp_path / "gguf").mkdir()
    written = build_method("gguf:Q4_0").prepare(tmp_path / "model").write(tmp_path / "gguf")
    assert written.measurements["kept_f16"] == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
    assert written.measurements["tensor_types"] == {"Q8_0": 2, "F32": 5, "Q4_0": 12, "F16": 2}
    assert "blk.0.ffn_down.weight, blk.1.ffn_down.weight" in written.notes[0]


def test_an_attention_window_becomes_the_context(tmp_path: Path, tiny: Any) -> None:
    tiny.save(tmp_path / "model", "Mistral", tiny.tokenizer(), sliding_window=128)
    (tmp_path / "gguf").mkdir()
    written = build_method("gguf:F16").prepare(tmp_path / "model").write(tmp_path / "gguf")
    assert "context cut from 512 to the attention window of 128" in written.notes[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer.json"),
        ("model.safetensors", "has no model.safetensors"),
    ],
)
def test_a_missing_file_is_named(model_folder: Path, name: str, said: str) -> None:
    (model_folder / name).unlink()
    assert said in refusal(model_folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel"),
        ({"architectures": None}, "architecture none"),
        ({"quantization_config": {"bits": 4}}, "already quantized"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"num_hidden_layers": 3}, "lacks 9 tensors, model.layers.2.input_layernorm.weight first"),
        ({"num_hidden_layers": 1}, "9 tensors are unknown to LlamaForCausalLM"),
        ({"intermediate_size": 96}, "by config.json [96, 64]"),
        ({"hidden_size": "64"}, "hidden_size must be a number"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope scaling longrope"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16}}, "its own beta_fast"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope scaling needs factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_a_config_that_cannot_be_converted_is_refused_by_name(
    model_folder: Path, edit_json: Any, changes: dict[str, Any], said: str
) -> None:
    edit_json(model_folder / "config.json", changes)
    assert said in refusal(model_folder)


def test_a_config_that_is_not_json_is_named(model_folder: Path) -> None:
    (model_folder / "config.json").write_text("{")
    assert "config.json: is not JSON" in refusal(model_folder)


def test_a_file_cut_short_is_named(model_folder: Path) -> None:
    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors: was cut short" in refusal(model_folder)


def test_a_shard_that_is_missing_is_named(model_folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks the shard model-00001-of-00002.safetensors" in refusal(model_folder)


def test_an_adapter_is_sent_to_merge(model_folder: Path) -> None:
    (model_folder / "adapter_config.json").write_text("{}")
    assert "run `decant merge`" in refusal(model_folder)


def test_weights_that_are_not_finite_are_refused(model_folder: Path) -> None:
    rewrite(model_folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    assert "model.norm.weight holds a value that is not finite" in refusal(model_folder, "gguf:F32")


def test_weights_too_large_for_float16_are_refused_and_fit_bfloat16(model_folder: Path) -> None:
    rewrite(model_folder, lambda tensors: tensors["lm_head.weight"].fill_(1e5))
    assert "more than float16 can; use gguf:BF16" in refusal(model_folder)
    build_method("gguf:BF16").prepare(model_folder).write(model_folder.parent / "gguf")


def test_what_is_not_quantized_or_by_an_unknown_method_is_not_restored(
    model_folder: Path, edit_json: Any
) -> None:
    with pytest.raises(QuantizeError, match="is not quantized"):
        build_method("dequantize:F16").prepare(model_folder)
    edit_json(model_folder / "config.json", {"quantization_config": {"quant_method": "hqq", "bits": 4}})
    with pytest.raises(QuantizeError, match="is quantized with hqq"):
        build_method("dequantize:F16").prepare(model_folder)
