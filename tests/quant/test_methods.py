"""One contract for every method: checked first, written whole into an empty folder, no larger than told."""

import json
import os
from pathlib import Path

import pytest

from decant.artifact import MANIFEST
from decant.config import load_config
from decant.errors import ConfigError, DecantError, QuantizeError
from decant_quant.method import METHODS, build_method
from decant_quant.options import AwqConfig, CalibrationConfig, GptqConfig, Options
from decant_quant.quantize_config import QuantizeConfig

# Where a library lives in an environment of its own, the variable that names its interpreter.
_PYTHONS = {
    "gptqmodel": "DECANT_GPTQMODEL_PYTHON",
    "autoround": "DECANT_AUTOROUND_PYTHON",
    "llmcompressor": "DECANT_LLMCOMPRESSOR_PYTHON",
}
# GGUF's types share one writer, whose own tests take them one by one.
NAMES = [name for name in METHODS if not name.startswith("gguf:") or name == "gguf:Q8_0"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = [f"The kettle sings at {n}, and by {n + 1} the street is up." for n in range(24)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def options(name: str, rows: Path) -> Options:
    variable = _PYTHONS.get(name.partition(":")[0])
    if variable is not None and variable not in os.environ:
        pytest.skip(f"{variable} names no interpreter with the library")
    return Options(
        GptqConfig(group_size=32),
        CalibrationConfig(dataset=rows, rows=12, heldout_rows=6),
        awq=AwqConfig(group_size=32),
        python=Path(os.environ[variable]) if variable else None,
    )


def source(name: str, model: Path, rows: Path) -> Path:
    """What the method reads: the model, or for restoring one that was quantized."""
    if not name.startswith("dequantize:"):
        return model
    quantized = rows.parent / "quantized"
    quantized.mkdir()
    build_method("gptq", options("gptq", rows)).prepare(model).write(quantized)
    return quantized


@pytest.mark.parametrize("name", NAMES)
def test_a_method_writes_what_it_said(model_folder: Path, rows: Path, name: str) -> None:
    given = source(name, model_folder, rows)
    before = {path: path.read_bytes() for path in given.iterdir()}
    prepared = build_method(name, options(name, rows)).prepare(given)
    assert not list(rows.parent.glob(".*"))
    folder = rows.parent / "aside"
    folder.mkdir()
    written = prepared.write(folder)
    prepared.done()
    assert written.kind in ("hf", "gguf")
    assert sum(written.measurements["tensor_types"].values()) > 0
    assert {path: path.read_bytes() for path in given.iterdir()} == before
    weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf")]
    assert 0 < sum(path.stat().st_size for path in weights) <= prepared.size_bytes
    assert (folder / "tokenizer.json").is_file()
    assert not (folder / MANIFEST).exists()
    assert not any(path.is_dir() for path in folder.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_method_refuses_what_is_no_model(tmp_path: Path, rows: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    method = build_method(name, options(name, rows))
    with pytest.raises(DecantError, match=r"empty: has no config\.json"):
        method.prepare(tmp_path / "empty")


@pytest.mark.parametrize("name", ["gptqmodel", "autoround", "llmcompressor:W8A8"])
def test_a_library_that_is_not_there_is_named_before_any_work(
    model_folder: Path, rows: Path, name: str
) -> None:
    given = Options(calibration=CalibrationConfig(dataset=rows), python=Path("/bin/false"))
    with pytest.raises(QuantizeError, match=r"/bin/false has no \w+: make an environment .* --python"):
        build_method(name, given).prepare(model_folder)


def test_what_runs_on_gpus_only_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="exl3 is made by ExLlamaV3 on an NVIDIA GPU"):
        load_config(QuantizeConfig, values={"model": "a", "output": "b", "method": "exl3"})
