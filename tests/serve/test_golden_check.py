"""The parity guard at start-up: a whole artifact passes, each kind of broken one is named."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from decant.artifact import read_manifest, write_manifest
from decant.golden import GoldenReport

pytestmark = pytest.mark.timeout(240)

RunDecant = Callable[..., Any]
Check = Callable[[Path], Awaitable[GoldenReport]]


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def another_template(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|fin|>", "<|fin|>\n"))


def another_tokenizer(folder: Path) -> None:
    """Two words trade places, as in a tokenizer trained again."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    words["hello"], words["Ġcat"] = words["Ġcat"], words["hello"]
    file.write_text(json.dumps(tokenizer))


def no_end(folder: Path) -> None:
    change_json(folder / "generation_config.json", eos_token_id=None)
    change_json(folder / "config.json", eos_token_id=None)
    change_json(folder / "tokenizer_config.json", eos_token=None)


def another_end(folder: Path) -> None:
    change_json(folder / "generation_config.json", eos_token_id=2)


def permuted_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name][torch.randperm(64, generator=torch.Generator().manual_seed(0))].contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


async def test_a_faithful_artifact_reproduces_its_golden_prompts(
    tiny_folder: Path, check_here: Check
) -> None:
    report = await check_here(tiny_folder)
    assert report.ok
    assert report.checked == 3
    assert report.flips == 0
    assert report.max_logprob_gap < 1e-3


@pytest.mark.parametrize(
    ("breaking", "kind"),
    [
        (another_template, "template"),
        (another_tokenizer, "tokenizer"),
        (no_end, "eos"),
        (another_end, "eos"),
        (permuted_weight, "weights"),
    ],
)
async def test_a_broken_artifact_is_named_for_what_broke(
    breaking: Callable[[Path], None], kind: str, tiny_model: Any, tmp_path: Path, check_here: Check
) -> None:
    report = await check_here(tiny_model.save(tmp_path / "broken", breaking=breaking))
    assert [found.kind for found in report.breaks][:1] == [kind]
    assert report.breaks[0].stage == "served"


def test_a_broken_artifact_is_not_served(tiny_model: Any, tmp_path: Path, run_decant: RunDecant) -> None:
    done = run_decant("serve", tiny_model.save(tmp_path / "broken", breaking=permuted_weight), "--port", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("decant: stage served: weights broken on")
    assert "serving" not in done.stdout


def spoil_template(reader: Any) -> None:
    text = reader.fields["tokenizer.chat_template"].parts[-1]
    at = bytes(text).index(b"<|fin|>")
    text[at : at + 7] = list(b"<|FIN|>")


def spoil_tokenizer(reader: Any) -> None:
    """Two tokens of one length trade places."""
    field = reader.fields["tokenizer.ggml.tokens"]
    words = {bytes(field.parts[part]).decode(): field.parts[part] for part in field.data}
    hello, world = words["Ġ1"], words["Ġ2"]
    hello[:], world[:] = world.copy(), hello.copy()


def spoil_end(reader: Any) -> None:
    reader.fields["tokenizer.ggml.eos_token_id"].parts[-1][0] = 0


def spoil_weights(reader: Any) -> None:
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_down.weight")
    tensor.data[:] = tensor.data[::-1].copy()


def test_llamacpp_reproduces_the_golden_prompts(tiny_gguf: Path, run_decant: RunDecant) -> None:
    done = run_decant("serve", tiny_gguf, "--check-only")
    report = GoldenReport.model_validate_json(done.stdout)
    assert done.returncode == 0
    assert (report.checked, report.flips) == (3, 0)


def test_a_begin_token_in_the_template_is_no_break(
    tiny_model_with_begin: Any, tmp_path: Path, run_decant: RunDecant
) -> None:
    """llama.cpp cuts it off the rendered text and lets the tokenizer add it."""
    folder = tiny_model_with_begin.save(tmp_path / "begin")
    done = run_decant("quantize", folder, "--output", tmp_path / "gguf", "--method", "gguf:F16")
    assert done.returncode == 0, done.stderr
    assert "golden prompts: 3 reproduced" in done.stdout


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (spoil_template, "template"),
        (spoil_tokenizer, "tokenizer"),
        (spoil_end, "eos"),
        (spoil_weights, "weights"),
    ],
)
def test_llamacpp_names_what_broke_in_a_gguf(
    spoil: Callable[[Any], None], kind: str, tiny_gguf: Path, tmp_path: Path, run_decant: RunDecant
) -> None:
    folder = tmp_path / "broken"
    manifest = read_manifest(tiny_gguf)
    folder.mkdir()
    (folder / "model.gguf").write_bytes((tiny_gguf / "model.gguf").read_bytes())
    spoil(gguf.GGUFReader(folder / "model.gguf", "r+"))
    write_manifest(folder, name="broken", kind="gguf", method=manifest.method, golden=manifest.golden)
    done = run_decant("serve", folder, "--check-only")
    assert done.returncode == 2
    assert GoldenReport.model_validate_json(done.stdout).breaks[0].kind == kind
    assert f"stage served: {kind} broken" in done.stderr
