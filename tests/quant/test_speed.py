"""`decant quantize --speed`: what was timed stands beside what was lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from decant.artifact import read_manifest, verify_files
from decant.config import load_config
from decant_quant.quality_page import quality_page
from decant_quant.quantize import run
from decant_quant.quantize_config import QuantizeConfig

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

TEXT = "The kettle sings at 7, and at 7:45 the whole street knows that breakfast is over. "


def test_an_artifact_is_timed_in_its_engine_and_signed_with_it(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": TEXT[i:] + str(i)}) + "\n" for i in range(12)))
    values: dict[str, Any] = {
        "model": model_folder,
        "output": tmp_path / "out",
        "method": "gguf:Q8_0",
        "speed": True,
        "timing": {"requests": 3, "prompt_tokens": 64, "output_tokens": 400},
        "calibration": {"heldout": rows, "heldout_rows": 8},
    }
    run(load_config(QuantizeConfig, values=values))
    report = json.loads((tmp_path / "out" / "quality.json").read_text())
    speed = report["speed"]
    assert (speed["engine"], speed["prompt_tokens"]) == ("llamacpp", 64)
    assert speed["prefill_tokens_per_s"]["n"] == 3
    assert 0 < speed["decode_tokens_per_s"]["low"] <= speed["decode_tokens_per_s"]["high"]
    assert speed["load_s"] > 0
    assert read_manifest(tmp_path / "out").measurements["speed"] == speed
    verify_files(tmp_path / "out")
    assert "in llamacpp: loads in" in capsys.readouterr().out
    page = (tmp_path / "out" / "quality.html").read_text()
    assert page == quality_page([report])
    assert "decode, tokens/s" in page
