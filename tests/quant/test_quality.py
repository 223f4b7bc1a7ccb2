"""The loss of every method's files on held-out rows, whatever the format."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from decant.errors import DecantError
from decant_quant.method import build_method
from decant_quant.options import CalibrationConfig, Options
from decant_quant.quality_page import quality_page
from decant_quant.quantize import QuantizeConfig, run

TEXT = "The kettle sings at 7, and at 7:45 the whole street knows that breakfast is over. "


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"text": TEXT[i:] + f"{i}"} for i in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def quantize(model: Path, method: str, rows: Path) -> dict[str, Any]:
    """What the method says of its files, without their trial in an engine."""
    output = model.parent / method.replace(":", "-")
    output.mkdir()
    options = Options(calibration=CalibrationConfig(heldout=rows, heldout_rows=8))
    build_method(method, options).prepare(model).write(output)
    return json.loads((output / "quality.json").read_text())


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_a_gguf_file_is_measured_by_reading_it_back(
    tmp_path: Path, rows: Path, tiny: Any, family: str
) -> None:
    """Rows of q and k change places in the file for some families: a mix-up would show in every layer."""
    tiny.save(tmp_path / "model", family, tiny.tokenizer())
    lost = {t: quantize(tmp_path / "model", f"gguf:{t}", rows) for t in ("F32", "Q8_0", "Q4_0")}
    means = [lost[t]["heldout"]["kl_mean"] for t in ("F32", "Q8_0", "Q4_0")]
    assert means[0] < 1e-9 < means[1] < means[2] / 10
    assert lost["Q4_0"]["heldout"]["kl_mean_low"] < means[2] < lost["Q4_0"]["heldout"]["kl_mean_high"]
    assert [layer["layer"] for layer in lost["Q4_0"]["layers"]] == [0, 1]
    assert lost["Q4_0"]["layers"][1]["own"] < lost["Q4_0"]["layers"][1]["drift"]


def test_the_layer_that_broke_stands_out(tmp_path: Path, rows: Path, tiny: Any) -> None:
    """Weights that nothing ever reaches take the range of their whole group."""
    model = tiny.save(tmp_path / "model", "Llama", tiny.tokenizer(), num_hidden_layers=4)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[:, ::32] = 10.0
        model.model.layers[2].mlp.up_proj.weight[::32] = 0.0
    model.save_pretrained(tmp_path / "model")
    own = [layer["own"] for layer in quantize(tmp_path / "model", "gguf:Q4_0", rows)["layers"]]
    assert max(range(4), key=own.__getitem__) == 2


def test_sixteen_bits_are_measured_and_load_as_they_are(tmp_path: Path, rows: Path, tiny: Any) -> None:
    tiny.save(tmp_path / "model", "Qwen2", tiny.tokenizer(), tie_word_embeddings=True)
    report = quantize(tmp_path / "model", "hf:BF16", rows)
    assert 0 < report["heldout"]["kl_mean"] < 1e-2
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf-BF16")
    assert loaded.dtype == torch.bfloat16


def test_int8_is_measured_as_it_loads(tmp_path: Path, rows: Path, tiny: Any) -> None:
    pytest.importorskip("bitsandbytes")
    tiny.save(tmp_path / "model", "Llama", tiny.tokenizer(), dtype=torch.bfloat16)
    report = quantize(tmp_path / "model", "bnb:INT8", rows)
    assert 0 < report["heldout"]["kl_mean"] < 0.02
    assert report["size_bytes"] < report["size_16bit_bytes"]


def test_nf4_is_loaded_as_saved_by_the_engine_that_serves_it(tmp_path: Path, rows: Path, tiny: Any) -> None:
    pytest.importorskip("bitsandbytes")
    tiny.save(tmp_path / "model", "Llama", tiny.tokenizer(), dtype=torch.bfloat16)
    calibration = CalibrationConfig(heldout=rows, heldout_rows=8)
    output = tmp_path / "nf4"
    run(QuantizeConfig(model=tmp_path / "model", output=output, method="bnb:NF4", calibration=calibration))
    assert 0 < json.loads((output / "quality.json").read_text())["heldout"]["kl_mean"] < 1.0


def test_the_page_stands_alone_and_names_every_method(tmp_path: Path, rows: Path, tiny: Any) -> None:
    tiny.save(tmp_path / "model", "Llama", tiny.tokenizer())
    reports = [quantize(tmp_path / "model", f"gguf:{t}", rows) for t in ("F16", "Q4_0")]
    page = quality_page(reports)
    assert all(page.count(f"<td>gguf:{t}</td>") == 1 for t in ("F16", "Q4_0"))
    assert "http" not in page
    assert "<script" not in page
    assert (tmp_path / "gguf-Q4_0" / "quality.html").read_text() == quality_page(reports[1:])


def test_rows_that_cannot_be_measured_on_are_refused_before_any_work(
    tmp_path: Path, rows: Path, tiny: Any
) -> None:
    tiny.save(tmp_path / "model", "Llama", tiny.tokenizer())
    calibration = CalibrationConfig(heldout=rows, heldout_rows=50)
    with pytest.raises(DecantError, match=r"12 usable rows, but 50 are asked for"):
        run(QuantizeConfig(model=tmp_path / "model", output=tmp_path / "out", calibration=calibration))
    assert not (tmp_path / "out").exists()
