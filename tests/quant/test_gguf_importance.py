"""Block formats of llama.cpp: what weighs their errors, what needs such weights, and what is read back."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decant.errors import QuantizeError
from decant_quant.method import GGUF_VARIANTS, build_method
from decant_quant.methods.ggml_library import open_ggml
from decant_quant.methods.gguf_mixes import MIXES, Place, format_of
from decant_quant.options import CalibrationConfig, GgufConfig, Options

pytest.importorskip("xllamacpp")
gguf: Any = pytest.importorskip("gguf")

TEXT = "The kettle sings at 7, and at 7:45 the whole street knows that breakfast is over. "
WIDE = {"hidden_size": 256, "intermediate_size": 256, "initializer_range": 0.06}
Load = Callable[[Path], AbstractContextManager[Any]]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": TEXT[i:] + f"{i}"}) + "\n" for i in range(24)))
    return path


@pytest.fixture
def wide(tmp_path: Path, tiny: Any) -> Path:
    """A model whose rows are whole blocks of 256, some of whose channels are far louder than others."""
    model = tiny.save(tmp_path / "model", "Llama", tiny.tokenizer(), **WIDE)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.mul_(torch.linspace(0, 3, 256) ** 2)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def convert(model: Path, variant: str, rows: Path | None = None, **settings: Any) -> dict[str, Any]:
    calibration = CalibrationConfig(dataset=rows, rows=12, heldout_rows=8) if rows else CalibrationConfig()
    folder = model.parent / f"{variant}-{len(list(model.parent.iterdir()))}"
    folder.mkdir()
    options = Options(calibration=calibration, gguf=GgufConfig(**settings))
    written = build_method(f"gguf:{variant}", options).prepare(model).write(folder)
    return {**written.measurements, "folder": folder, "notes": written.notes}


def own_errors(made: dict[str, Any]) -> float:
    return sum(layer["own"] for layer in json.loads((made["folder"] / "quality.json").read_text())["layers"])


@pytest.mark.parametrize("variant", ["Q4_0", "Q4_K_M", "Q2_K", "IQ3_S"])
def test_weighing_by_calibration_rows_loses_less(wide: Path, rows: Path, variant: str) -> None:
    plain = convert(wide, variant, rows, importance="off")
    weighed = convert(wide, variant, rows)
    assert plain["importance"] is None
    assert weighed["importance"]["tensors"] == 14
    assert own_errors(weighed) < own_errors(plain)


def test_every_type_of_the_table_is_read_back_and_more_bits_lose_less(wide: Path, rows: Path) -> None:
    chosen = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ3_S", "IQ2_XXS")
    lost = [own_errors(convert(wide, variant, rows)) for variant in chosen]
    assert lost == sorted(lost)
    assert set(MIXES) == set(GGUF_VARIANTS)


@pytest.mark.parametrize("variant", ["Q4_K_M", "IQ4_XS", "IQ2_XXS"])
def test_llama_cpp_computes_what_the_file_says(wide: Path, rows: Path, llama_cpp: Load, variant: str) -> None:
    made = convert(wide, variant, rows)
    ids = list(range(50, 90))
    stored = gguf.GGUFReader(made["folder"] / "model.gguf").tensors
    assert {tensor.tensor_type.name for tensor in stored} == set(made["tensor_types"])
    with llama_cpp(made["folder"] / "model.gguf") as engine:
        found = np.array(engine.logprobs(ids, vocabulary=512))
    assert np.isfinite(found).all()
    assert abs(np.exp(found).sum() - 1) < 1e-3


def test_a_type_that_is_noise_without_an_importance_is_refused_without(wide: Path) -> None:
    with pytest.raises(QuantizeError, match=r"calibration\.dataset=FILE, or .* gguf\.imatrix=FILE"):
        build_method("gguf:IQ2_XS").prepare(wide)


def test_the_importance_is_the_mean_square_of_what_the_linears_are_given(wide: Path, rows: Path) -> None:
    made = convert(wide, "Q4_K_M", rows)
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32)
    seen: list[Any] = []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _m, given: seen.append(given[0][0]))
    options = Options(calibration=CalibrationConfig(dataset=rows, rows=12, heldout_rows=8))
    prepared: Any = build_method("gguf:Q4_K_M", options).prepare(wide)
    with torch.no_grad():
        for row in prepared.measuring.rows.calibration:
            model(torch.tensor([row.token_ids]))
    expected = torch.cat(seen).square().mean(0)
    stored = {t.name: t.data for t in gguf.GGUFReader(made["folder"] / "model.imatrix").tensors}
    sums, counts = (stored[f"blk.1.ffn_down.weight{part}"] for part in (".in_sum2", ".counts"))
    assert np.allclose(sums[0] / counts[0], expected.numpy(), rtol=1e-3)


def test_each_expert_is_weighed_by_the_tokens_that_it_is_sent(tmp_path: Path, rows: Path, tiny: Any) -> None:
    tiny.save(
        tmp_path / "model", "Mixtral", tiny.tokenizer(), **WIDE, num_local_experts=4, sliding_window=None
    )
    made = convert(tmp_path / "model", "Q4_K_M", rows)
    stored = {t.name: t.data for t in gguf.GGUFReader(made["folder"] / "model.imatrix").tensors}
    counts = stored["blk.0.ffn_down_exps.weight.counts"].ravel()
    tokens = stored["blk.0.attn_output.weight.counts"].item()
    assert len(counts) == 4
    assert counts.sum() == 2 * tokens  # each token goes to two experts
    assert stored["blk.0.ffn_down_exps.weight.in_sum2"].shape == (4, 256)


def test_a_finished_matrix_gives_the_same_file_as_the_rows_it_was_made_from(wide: Path, rows: Path) -> None:
    made = convert(wide, "IQ3_S", rows)
    again = convert(wide, "IQ3_S", imatrix=made["folder"] / "model.imatrix")
    first, second = ((m["folder"] / "model.gguf").read_bytes() for m in (made, again))
    assert first == second


def test_a_matrix_of_another_model_or_no_matrix_is_refused(wide: Path, tiny: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF" + bytes(40))
    for file, said in (
        (other, "no importance matrix in GGUF"),
        (wide / "config.json", "no importance matrix"),
    ):
        with pytest.raises(QuantizeError, match=said):
            convert(wide, "Q4_K_M", imatrix=file)


def test_rows_that_are_no_whole_blocks_get_smaller_ones_and_it_is_said(tmp_path: Path, tiny: Any) -> None:
    tiny.save(tmp_path / "model", "Llama", tiny.tokenizer())
    made = convert(tmp_path / "model", "Q4_K_M")
    assert set(made["tensor_types"]) == {"F32", "Q5_0", "Q8_0"}
    assert "Q5_0 instead of Q4_K" in made["notes"][-1]


def test_values_heads_and_last_projections_get_the_bits_that_llama_cpp_gives_them() -> None:
    def layers(variant: str, kind: str, **model: Any) -> list[str]:
        shape: dict[str, Any] = {"heads_per_key": 1, "experts": 0, "has_importance": True, **model}
        return [format_of(MIXES[variant], Place(kind, i, 16, **shape)) for i in range(16)]

    raised = [i for i, name in enumerate(layers("Q4_K_M", "ffn_down")) if name == "Q6_K"]
    assert raised == [0, 1, 4, 7, 10, 13, 14, 15]
    assert set(layers("Q4_K_M", "ffn_up")) == {"Q4_K"}
    assert layers("Q3_K_M", "attn_v")[:3] == ["Q5_K", "Q5_K", "Q4_K"]
    assert set(layers("IQ2_XS", "attn_v", heads_per_key=4)) == {"Q4_K"}
    assert set(layers("Q4_K_M", "attn_k", experts=8)) == {"Q8_0"}


def test_a_tied_embedding_gets_the_bits_of_the_head_that_it_is(tmp_path: Path, tiny: Any) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "tie_word_embeddings": True}
    tiny.save(tmp_path / "model", "Llama", tiny.tokenizer(), **sizes)
    stored = gguf.GGUFReader(convert(tmp_path / "model", "Q4_K_S")["folder"] / "model.gguf").tensors
    assert {t.name: t.tensor_type.name for t in stored}["token_embd.weight"] == "Q6_K"


def test_columns_that_no_row_used_and_odd_weights_do_not_break_the_encoders() -> None:
    ggml = open_ggml(None)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((8, 512)).astype(np.float32)
    rows[0], rows[1], rows[2], rows[3, ::2] = 0, 1e-30, 6e4, 0
    weights = np.full(512, 1e-6, np.float32)
    weights[::7] = 1e4
    for name in ("Q4_K", "Q6_K", "Q2_K", "IQ4_XS", "IQ3_S", "IQ2_XXS"):
        ggml.start(name)
        encoded = ggml.encode(rows, name, weights)
        restored = gguf.quants.dequantize(encoded, gguf.GGMLQuantizationType[name])
        assert np.isfinite(restored[[0, 1, 3, 4]]).all(), name


def test_ggml_and_the_gguf_package_write_the_same_bytes_where_both_can() -> None:
    ggml = open_ggml(None)
    rows = np.random.default_rng(1).standard_normal((16, 256)).astype(np.float32)
    for name in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"):
        expected = gguf.quantize(rows, gguf.GGMLQuantizationType[name])
        assert (ggml.encode(rows, name, None) == expected).all(), name


def test_another_interpreter_may_bring_the_encoders() -> None:
    with pytest.raises(QuantizeError, match="no Python interpreter that answers"):
        open_ggml(Path("/bin/false"))
