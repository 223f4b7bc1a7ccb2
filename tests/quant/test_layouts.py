"""The layouts that codes are written in, read by compressed-tensors' and AutoAWQ's own rules and by ours."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from decant.artifact import verify_files
from decant.errors import ConfigError, QuantizeError
from decant_quant.method import build_method
from decant_quant.methods.gptq.grid import GridSpec
from decant_quant.methods.gptq.packing import pack
from decant_quant.methods.gptq.solve import SolveSpec, round_to_nearest
from decant_quant.methods.layouts import Coded, read_awq, read_packed, relaid
from decant_quant.methods.restorable import open_restorable
from decant_quant.methods.rounding import round_tokens
from decant_quant.methods.smoothing import SeenInputs, awq_rule
from decant_quant.options import AwqConfig, CalibrationConfig, GptqConfig, W8a8Config
from decant_quant.quantize import QuantizeConfig, run


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.jsonl"
    texts = [f"The kettle sings at {n}, and by {n + 1} the street is up." for n in range(24)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def config(model: Path, rows: Path, method: str, **options: Any) -> QuantizeConfig:
    return QuantizeConfig(
        model=model,
        output=rows.parent / f"{method}-{options.get('layout')}",
        method=method,
        gptq=options.pop("gptq", GptqConfig(group_size=32)),
        awq=AwqConfig(group_size=32, **options.pop("awq", {})),
        calibration=CalibrationConfig(dataset=rows, rows=12, heldout_rows=6),
        **options,
    )


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= safetensors.torch.load_file(shard)
    return found


def random_linear(bits: int) -> tuple[Coded, dict[str, torch.Tensor]]:
    """64 inputs, 32 outputs, two groups: its parts, and as GPTQ's layout stores it."""
    made = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (64, 32), generator=made)
    zeros = torch.randint(1, 2**bits, (2, 32), generator=made).float()
    scales = (torch.rand(2, 32, generator=made) + 0.5).half().float()
    return Coded(codes, scales, zeros), pack(codes, scales, zeros, bits=bits, offset=0).named("x")


def test_awq_words_hold_outputs_in_the_order_that_autoawq_packs_them() -> None:
    linear, stored = random_linear(4)
    moved = relaid(stored, "awq", bits=4, offset=0, sym=False)
    assert {name: tuple(t.shape) for name, t in moved.items()} == {
        "x.qweight": (64, 4),
        "x.qzeros": (2, 4),
        "x.scales": (2, 32),
    }
    word = int(moved["x.qweight"][5, 1])
    fields = [word >> 4 * place & 15 for place in range(8)]
    assert fields == [int(linear.codes[5, 8 + output]) for output in (0, 2, 4, 6, 1, 3, 5, 7)]
    assert torch.equal(read_awq(moved, "x").weight(), linear.weight())


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_words_are_what_compressed_tensors_says_they_are(bits: int) -> None:
    linear, stored = random_linear(bits)
    moved = relaid(stored, "compressed-tensors", bits=bits, offset=0, sym=False)
    each, half = 32 // bits, 2 ** (bits - 1)
    assert moved["x.weight_shape"].tolist() == [32, 64]
    signed = (int(moved["x.weight_packed"][7, 3]) >> bits * 2 & 2**bits - 1) - half
    assert signed == int(linear.codes[3 * each + 2, 7]) - half
    zero = int(moved["x.weight_zero_point"][1, 1]) >> bits & 2**bits - 1
    assert zero == linear.zero[1, each + 1]
    assert torch.equal(read_packed(moved, "x", bits).weight(), linear.weight())


@pytest.mark.parametrize(
    ("method", "layout", "quant_method"),
    [
        ("gptq", "awq", "awq"),
        ("gptq", "compressed-tensors", "compressed-tensors"),
        ("awq", None, "awq"),
        ("awq", "gptq", "gptq"),
        ("awq", "compressed-tensors", "compressed-tensors"),
        ("w8a8", None, "compressed-tensors"),
        ("fp8", None, "compressed-tensors"),
    ],
)
def test_a_folder_in_any_layout_is_whole_and_restored(
    model_folder: Path, sentences: Path, method: str, layout: Any, quant_method: str
) -> None:
    settings = config(model_folder, sentences, method, layout=layout)
    run(settings)
    assert verify_files(settings.output).method == method
    described = json.loads((settings.output / "config.json").read_text())["quantization_config"]
    assert described["quant_method"] == quant_method
    index = json.loads((settings.output / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(tensors(settings.output))
    quality = json.loads((settings.output / "quality.json").read_text())
    assert 0 < quality["heldout"]["kl_mean"] < 0.2
    opened, before = open_restorable(settings.output), tensors(model_folder)
    assert set(opened.names) == set(before)
    assert all(opened.shape(name) == tuple(tensor.shape) for name, tensor in before.items())
    (sentences.parent / "plain").mkdir()
    build_method("dequantize:F32").prepare(settings.output).write(sentences.parent / "plain")
    plain = tensors(sentences.parent / "plain")
    assert all(torch.equal(plain[name], tensor) for name, tensor in opened.read(opened.names).items())


def test_a_layout_changes_where_codes_lie_and_nothing_else(model_folder: Path, sentences: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    found: list[torch.Tensor] = []
    for layout in (None, "awq", "compressed-tensors"):
        settings = config(model_folder, sentences, "gptq", layout=layout)
        run(settings)
        found.append(open_restorable(settings.output).read([name])[name])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("family", ["Qwen2", "Phi3", "Gemma2"])
def test_moved_scales_leave_what_a_layer_computes_as_it_was(
    tmp_path: Path, sentences: Path, tiny: Any, family: str
) -> None:
    """8-bit weights after heavy smoothing: were a scale not taken back, the outputs would be far off."""
    tiny.save(tmp_path / "model", family, tiny.tokenizer(), num_key_value_heads=4)
    settings = config(tmp_path / "model", sentences, "w8a8", w8a8=W8a8Config(smoothing=0.8))
    run(settings)
    quality = json.loads((settings.output / "quality.json").read_text())
    assert quality["heldout"]["kl_mean"] < 0.02
    norm = "model.layers.0.input_layernorm.weight"
    assert not torch.equal(tensors(settings.output)[norm].float(), tensors(tmp_path / "model")[norm].float())


def test_awq_protects_the_channel_with_large_inputs() -> None:
    made = torch.Generator().manual_seed(0)
    sample, weight = torch.randn(64, 32, generator=made), torch.randn(48, 32, generator=made)
    sample[:, 3] *= 50
    spec, size = GridSpec(4, sym=True), sample.abs()
    scale = awq_rule(spec, 32)(SeenInputs(size.mean(0), size.amax(0), sample), weight)
    assert int(scale.argmax()) == 3

    def error(scales: torch.Tensor) -> float:
        rounding = SolveSpec(spec, 32, act_order=False, damping=0.01)
        solved = round_to_nearest(weight * scales, rounding)
        restored = Coded(solved.codes, solved.grid.scale, solved.grid.zero).weight() / scales
        return float((sample @ (restored - weight).t()).square().sum())

    assert error(scale) < 0.8 * error(torch.ones(32))


def test_inputs_are_rounded_token_by_token() -> None:
    inputs = torch.tensor([[1.0, -127.0, 50.4], [0.01, 0.02, 1.27]])
    assert round_tokens(inputs, "int8").tolist() == [
        pytest.approx([1, -127, 50]),
        pytest.approx([0.01, 0.02, 1.27]),
    ]
    assert round_tokens(inputs, "fp8")[0].tolist() == pytest.approx([1.0, -127.0, 50.4], rel=0.07)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        (
            "gptq",
            {"layout": "awq", "gptq": GptqConfig(bits=8, group_size=32)},
            "no awq layout",
        ),
        ("gptq", {"layout": "awq", "gptq": GptqConfig(group_size=-1)}, "wants groups"),
        (
            "gptq",
            {"layout": "compressed-tensors", "gptq": GptqConfig(bits=3, group_size=32)},
            "of 3 bits",
        ),
    ],
)
def test_codes_that_a_layout_does_not_hold_are_refused(
    model_folder: Path, sentences: Path, method: str, options: Any, said: str
) -> None:
    with pytest.raises(QuantizeError, match=said):
        run(config(model_folder, sentences, method, **options))


def test_a_layout_is_for_methods_that_have_a_choice() -> None:
    from decant.config import load_config

    with pytest.raises(ConfigError, match="fp8 has one layout only"):
        load_config(QuantizeConfig, values={"model": "a", "output": "b", "method": "fp8", "layout": "awq"})


def test_what_is_missing_from_a_layout_is_named(model_folder: Path, sentences: Path) -> None:
    settings = config(model_folder, sentences, "awq")
    run(settings)
    shard = settings.output / "model-00001-of-00003.safetensors"
    kept = {n: t for n, t in safetensors.torch.load_file(shard).items() if "q_proj.scales" not in n}
    safetensors.torch.save_file(kept, shard)
    opened = open_restorable(settings.output)
    with pytest.raises(QuantizeError, match=r"lacks model\.layers\.0\.self_attn\.q_proj\.scales"):
        opened.read(opened.names)
