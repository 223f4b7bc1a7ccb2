"""`--recover`: the codes stay, the scales learn, and nothing is kept that held-out rows do not confirm."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from decant_quant.options import CalibrationConfig, GptqConfig, RecoverConfig
from decant_quant.quantize import run
from decant_quant.quantize_config import QuantizeConfig

WORDS = ("kettle", "street", "breakfast", "sings", "seven", "train", "window", "garden", "letter", "morning")


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.jsonl"
    texts = [" ".join(WORDS[(i * 3 + j) % 10] for j in range(12)) + f" {i}" for i in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def quantize(model: Path, dataset: Path, name: str, **options: Any) -> Path:
    output = dataset.parent / name
    run(
        QuantizeConfig(
            model=model,
            output=output,
            method="gptq",
            gptq=GptqConfig(bits=options.pop("bits", 3), group_size=32),
            calibration=CalibrationConfig(dataset=dataset, rows=24, heldout_rows=12),
            **options,
        )
    )
    return output


def stored(folder: Path, part: str) -> dict[str, torch.Tensor]:
    shards = [safetensors.torch.load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return {name: tensor for shard in shards for name, tensor in shard.items() if name.endswith(part)}


@pytest.mark.parametrize("bits", [2, 3])
def test_scales_learn_and_codes_stay(model_folder: Path, sentences: Path, bits: int) -> None:
    plain = quantize(model_folder, sentences, "plain", bits=bits)
    recovery = RecoverConfig(epochs=12, learning_rate=4e-3, batch_tokens=256)
    healed = quantize(model_folder, sentences, "healed", bits=bits, recover=True, recovery=recovery)
    report = json.loads((healed / "quality.json").read_text())
    assert report["recovery"]["kept"]
    assert report["heldout"]["kl_mean"] == report["recovery"]["kl_mean_after"]
    assert report["heldout"]["kl_mean"] < 0.9 * report["recovery"]["kl_mean_before"]
    for part in ("qweight", "qzeros", "g_idx"):
        before, after = stored(plain, part), stored(healed, part)
        assert all(torch.equal(before[name], after[name]) for name in before)
    before, after = stored(plain, "scales"), stored(healed, "scales")
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert {t.dtype for t in after.values()} == {torch.float16}


def test_what_held_out_rows_do_not_confirm_is_not_kept(model_folder: Path, sentences: Path) -> None:
    """Steps as long as these throw the scales about."""
    plain = quantize(model_folder, sentences, "plain")
    recovery = RecoverConfig(epochs=1, learning_rate=0.1, batch_tokens=1_000_000)
    same = quantize(model_folder, sentences, "same", recover=True, recovery=recovery)
    assert not json.loads((same / "quality.json").read_text())["recovery"]["kept"]
    before, after = stored(plain, "scales"), stored(same, "scales")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_seed_gives_the_same_scales(model_folder: Path, sentences: Path) -> None:
    recovery = RecoverConfig(epochs=1, batch_tokens=256)
    twice = [
        stored(quantize(model_folder, sentences, name, recover=True, recovery=recovery), "scales")
        for name in ("first", "second")
    ]
    assert all(torch.equal(twice[0][name], twice[1][name]) for name in twice[0])
