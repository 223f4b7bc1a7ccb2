"""`decant quantize` as a command: a checked artifact in place, or nothing changed."""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from decant.artifact import read_manifest, verify_files, write_manifest
from decant.config import load_config
from decant.errors import ArtifactError, ConfigError, ParityError, QuantizeError
from decant.files import sha256_file
from decant.golden import GoldenPrompt, GoldenSet
from decant_quant.method import METHODS
from decant_quant.quantize import QuantizeConfig, run

MESSAGES = ({"role": "user", "content": "Is 7 > 5?"},)
MAX_TOKENS = 6


def record_golden(model: Any, tokenizer: Any) -> GoldenSet:
    """Greedy decoding in transformers, one prompt."""
    rendered = tokenizer.apply_chat_template(list(MESSAGES), tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer.encode(rendered)
    taken: list[int] = []
    logprobs: list[float] = []
    margins: list[float] = []
    while len(taken) < MAX_TOKENS:
        with torch.no_grad():
            top = torch.log_softmax(model(torch.tensor([prompt_ids + taken])).logits[0, -1], -1).topk(2)
        margins.append(float(top.values[0] - top.values[1]))
        if int(top.indices[0]) == tokenizer.eos_token_id:
            break
        taken.append(int(top.indices[0]))
        logprobs.append(float(top.values[0]))
    prompt = GoldenPrompt(
        messages=MESSAGES,
        rendered=rendered,
        prompt_ids=tuple(prompt_ids),
        token_ids=tuple(taken),
        logprobs=tuple(logprobs),
        margins=tuple(margins),
        finish="length" if len(taken) == MAX_TOKENS else "stop",
    )
    return GoldenSet(stage="merged", eos_id=tokenizer.eos_token_id, max_tokens=MAX_TOKENS, prompts=(prompt,))


@pytest.fixture
def merged(tmp_path: Path, tiny: Any) -> Path:
    """An HF artifact of ours, sure of its answers, with a golden prompt.

    It answers in ASCII: llama.cpp does not report the tokens of half a character.
    """
    tokenizer = tiny.tokenizer()
    model = tiny.save(tmp_path / "merged", "Llama", tokenizer)
    letters = {token for text, token in tokenizer.get_vocab().items() if text.isascii()}
    with torch.no_grad():
        model.lm_head.weight[sorted(letters)] *= 6.0
    model.save_pretrained(tmp_path / "merged")
    golden = record_golden(model, tokenizer)
    write_manifest(tmp_path / "merged", name="merged", kind="hf", method="merge", golden=golden)
    return tmp_path / "merged"


def quantize(model: Path, method: str = "gguf:F16") -> Path:
    output = model.parent / "quantized"
    run(QuantizeConfig(model=model, output=output, method=method))
    return output


def test_the_artifact_names_its_parent_and_carries_its_golden_prompts(
    merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = quantize(merged, "gguf:f16")
    manifest = verify_files(output)
    assert (manifest.kind, manifest.method, manifest.name) == ("gguf", "gguf:F16", "quantized")
    assert manifest.parent is not None
    assert manifest.parent.manifest_sha256 == sha256_file(merged / "manifest.json")
    assert manifest.golden == read_manifest(merged).golden
    assert manifest.size_bytes == (output / "model.gguf").stat().st_size
    assert set(manifest.files) == {
        *("model.gguf", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    }
    assert "golden prompts: 1 reproduced" in capsys.readouterr().out


def test_a_file_that_answers_otherwise_is_never_put_in_place(merged: Path, tiny: Any) -> None:
    golden = read_manifest(merged).golden
    assert golden is not None
    tiny.save(merged, "Llama", tiny.tokenizer(), initializer_range=0.3)
    write_manifest(merged, name="merged", kind="hf", method="merge", golden=golden)
    with pytest.raises(ParityError, match="stage quantized: weights broken"):
        quantize(merged)
    assert [path.name for path in merged.parent.iterdir()] == ["merged"]


def test_an_older_artifact_of_ours_is_replaced_and_anything_else_is_not(model_folder: Path) -> None:
    output = quantize(model_folder)
    quantize(model_folder, "gguf:Q4_0")
    assert read_manifest(output).method == "gguf:Q4_0"
    (output / "manifest.json").unlink()
    with pytest.raises(QuantizeError, match="not empty and not an artifact"):
        quantize(model_folder)
    assert (output / "model.gguf").is_file()


def test_the_model_is_not_its_own_output(model_folder: Path) -> None:
    with pytest.raises(QuantizeError, match="is the model"):
        run(QuantizeConfig(model=model_folder, output=model_folder, method="gguf:F16"))


def test_a_model_that_differs_from_its_manifest_is_refused(merged: Path) -> None:
    (merged / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        quantize(merged)


def test_an_unknown_method_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no such method: gguf:Q4 .*did you mean gguf:Q4_[01]"):
        load_config(QuantizeConfig, values={"model": "a", "output": "b", "method": "gguf:Q4"})


def test_the_recipe_of_this_area_is_a_config_of_this_command(repository: Path) -> None:
    for recipe in sorted((repository / "quant" / "recipes").glob("*.toml")):
        assert load_config(QuantizeConfig, file=recipe).method in METHODS


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Writing a file longer than 150 KB fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_leaves_nothing_behind(model_folder: Path, small_disk: None) -> None:
    with pytest.raises(QuantizeError, match="could not be written"):
        quantize(model_folder)
    assert [path.name for path in model_folder.parent.iterdir()] == ["model"]
