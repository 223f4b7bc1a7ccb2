"""`--method gptq` end to end: the bundled teacher, the families, refusals, and runs that were killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from decant.artifact import read_manifest, verify_files, write_manifest
from decant.errors import DecantError, ParityError, QuantizeError
from decant_quant.method import build_method
from decant_quant.methods.gptq.reader import open_gptq
from decant_quant.options import CalibrationConfig, GptqConfig, Options
from decant_quant.quantize import QuantizeConfig, run

WORDS = ("kettle", "street", "breakfast", "sings", "seven", "train", "window", "garden", "letter", "morning")


@pytest.fixture(scope="session")
def teacher(repository: Path) -> Path:
    return repository / "distill" / "decant_distill" / "demo" / "weights" / "teacher"


@pytest.fixture
def problems(teacher: Path, tmp_path: Path) -> Path:
    """The questions and answers of the teacher's own golden prompts, each varied a few times."""
    golden = read_manifest(teacher).golden
    assert golden is not None
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(teacher)
    rows: list[dict[str, Any]] = []
    for prompt in golden.prompts:
        answer = tokenizer.decode(prompt.token_ids)
        question = prompt.messages[-1]["content"]
        sentences = question.split(". ")
        for count in range(1, len(sentences)):
            asked = ". ".join(sentences[:count] + sentences[-1:])
            rows.append({"prompt": asked, "completion": answer})
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.jsonl"
    texts = [" ".join(WORDS[(i * 3 + j) % len(WORDS)] for j in range(5 + i % 4)) + f" {i}" for i in range(24)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def config(model: Path, dataset: Path, **gptq: Any) -> QuantizeConfig:
    return QuantizeConfig(
        model=model,
        output=dataset.parent / "quantized",
        method="gptq",
        gptq=GptqConfig.model_validate({"group_size": 32, **gptq}),
        calibration=CalibrationConfig(dataset=dataset, rows=16, heldout_rows=6, max_tokens=512),
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= safetensors.torch.load_file(shard)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "manifest.json"}


def test_the_teacher_keeps_its_golden_answers_at_4_bits(
    teacher: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config(teacher, problems, group_size=128))
    output = problems.parent / "quantized"
    manifest = verify_files(output)
    assert (manifest.kind, manifest.method) == ("hf", "gptq")
    assert manifest.golden == read_manifest(teacher).golden
    assert manifest.size_bytes < 0.4 * read_manifest(teacher).size_bytes
    quality = json.loads((output / "quality.json").read_text())
    assert quality["golden"]["checked"] == 8
    assert 0 < quality["heldout"]["kl_mean"] < 0.01
    assert quality["heldout"]["kl_mean"] <= quality["heldout"]["kl_p99"] <= quality["heldout"]["kl_max"]
    assert quality["heldout"]["top1_agreement"] > 0.98
    assert len(quality["linears"]) == 4 * 7
    assert all(0 < linear["relative_error"] < 0.02 for linear in quality["linears"])
    assert "golden prompts: 8 reproduced" in capsys.readouterr().out
    assert not list(problems.parent.glob(".quantized*"))


def test_what_was_measured_is_what_transformers_says_of_the_restored_weights(
    teacher: Path, problems: Path
) -> None:
    """The divergence of quality.json, again, by two whole models and no code of the streaming path."""
    settings = config(teacher, problems)
    run(settings)
    restored = problems.parent / "restored"
    restored.mkdir()
    build_method("dequantize:F32").prepare(settings.output).write(restored)
    models = [
        transformers.AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (teacher, restored)
    ]
    prepared: Any = build_method("gptq", Options(settings.gptq, settings.calibration)).prepare(teacher)
    gaps: list[torch.Tensor] = []
    for row in prepared.rows.heldout:
        with torch.no_grad():
            p, q = (model(torch.tensor([row.token_ids])).logits[0].log_softmax(-1) for model in models)
        gaps.append((p.exp() * (p - q)).sum(-1)[row.answer_start - 1 : -1])
    quality = json.loads((settings.output / "quality.json").read_text())["heldout"]
    assert quality["tokens"] == len(torch.cat(gaps))
    assert quality["kl_mean"] == pytest.approx(float(torch.cat(gaps).mean()), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
def test_the_checkpoint_is_in_the_standard_format(
    model_folder: Path, sentences: Path, bits: int, act_order: bool
) -> None:
    run(config(model_folder, sentences, bits=bits, act_order=act_order))
    output = sentences.parent / "quantized"
    settings = json.loads((output / "config.json").read_text())
    assert settings["dtype"] == "float16"
    described = settings["quantization_config"]
    assert (described["quant_method"], described["checkpoint_format"]) == ("gptq", "gptq")
    assert (described["bits"], described["group_size"], described["sym"]) == (bits, 32, True)
    # Groups are neighbouring columns whatever the order they were solved in: kernels need not reorder.
    assert described["desc_act"] is False
    stored = weights(output)
    down = "model.layers.1.mlp.down_proj"
    assert tuple(stored[f"{down}.qweight"].shape) == (128 * bits // 32, 64)
    assert tuple(stored[f"{down}.qzeros"].shape) == (4, 64 * bits // 32)
    assert (stored[f"{down}.scales"].dtype, tuple(stored[f"{down}.scales"].shape)) == (torch.float16, (4, 64))
    assert stored[f"{down}.g_idx"].tolist() == [column // 32 for column in range(128)]
    middle = {2: 0x55555555, 4: 0x77777777, 8: 0x7F7F7F7F}.get(bits)
    if middle is not None:
        assert all((t == middle).all() for name, t in stored.items() if name.endswith("qzeros"))
    assert f"{down}.weight" not in stored
    assert {t.dtype for t in stored.values()} == {torch.int32, torch.float16}
    index = json.loads((output / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(stored)


@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_it_says_what_it_will_need_on_disk_and_writes_no_more(
    model_folder: Path, sentences: Path, group_size: int
) -> None:
    settings = config(model_folder, sentences, group_size=group_size)
    prepared = build_method("gptq", Options(settings.gptq, settings.calibration)).prepare(model_folder)
    folder = sentences.parent / "aside"
    folder.mkdir()
    prepared.write(folder)
    written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert written <= prepared.size_bytes < 2.5 * written


def test_more_bits_lose_less(model_folder: Path, sentences: Path) -> None:
    lost: list[float] = []
    for bits in (4, 8):
        run(config(model_folder, sentences, bits=bits))
        quality = json.loads((sentences.parent / "quantized" / "quality.json").read_text())
        lost.append(quality["heldout"]["kl_mean"])
    assert lost[1] < lost[0] / 20


QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((name, {}) for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma2", "Gemma3")),
        ("Mixtral", {"num_local_experts": 4}),
        ("Qwen2Moe", {**QWEN_EXPERTS, "shared_expert_intermediate_size": 96}),
        ("Qwen3Moe", {**QWEN_EXPERTS, "head_dim": 16}),
    ],
)
def test_every_family_is_quantized_and_restored(
    tmp_path: Path, sentences: Path, tiny: Any, family: str, changes: dict[str, Any]
) -> None:
    model = tiny.save(tmp_path / "model", family, tiny.tokenizer(), dtype=torch.bfloat16, **changes)
    settings = config(tmp_path / "model", sentences, bits=8)
    run(settings)
    (tmp_path / "restored").mkdir()
    build_method("dequantize:F32").prepare(settings.output).write(tmp_path / "restored")
    restored = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "restored", dtype=torch.float32)
    for (name, before), after in zip(model.state_dict().items(), restored.state_dict().values(), strict=True):
        torch.testing.assert_close(
            after, before.float(), atol=0.05 * float(before.abs().max()), rtol=0, msg=name
        )


def test_experts_are_stored_one_by_one_and_the_router_stays(
    tmp_path: Path, sentences: Path, tiny: Any
) -> None:
    tiny.save(tmp_path / "model", "Mixtral", tiny.tokenizer(), num_local_experts=4)
    run(config(tmp_path / "model", sentences))
    stored = weights(sentences.parent / "quantized")
    experts = "model.layers.0.block_sparse_moe.experts"
    assert {f"{experts}.{number}.w{part}.qweight" for number in range(4) for part in (1, 2, 3)} <= set(stored)
    assert stored["model.layers.0.block_sparse_moe.gate.weight"].dtype == torch.float16
    with pytest.raises(QuantizeError, match="not made for models with experts"):
        run(config(tmp_path / "model", sentences).model_copy(update={"method": "awq"}))


def test_a_tied_head_stays_with_the_embedding(tmp_path: Path, sentences: Path, tiny: Any) -> None:
    tiny.save(tmp_path / "model", "Llama", tiny.tokenizer(), tie_word_embeddings=True)
    run(config(tmp_path / "model", sentences))
    stored = weights(sentences.parent / "quantized")
    assert "model.embed_tokens.weight" in stored
    assert not any(name.startswith("lm_head") for name in stored)


@pytest.mark.parametrize(("sym", "layout", "offset"), [(True, "gptq", 1), (False, "gptq_v2", 0)])
def test_restoring_gives_exactly_the_quantized_weights(
    model_folder: Path, sentences: Path, sym: bool, layout: str, offset: int
) -> None:
    settings = config(model_folder, sentences, sym=sym)
    run(settings)
    described = json.loads((settings.output / "config.json").read_text())["quantization_config"]
    assert described["checkpoint_format"] == layout
    opened = open_gptq(settings.output)
    (sentences.parent / "restored").mkdir()
    build_method("dequantize:F32").prepare(settings.output).write(sentences.parent / "restored")
    stored = weights(sentences.parent / "restored")
    assert set(stored) == set(opened.names)
    assert all(torch.equal(stored[name], tensor) for name, tensor in opened.read(opened.names).items())
    name = "model.layers.0.self_attn.q_proj"
    packed = weights(settings.output)
    code = int(packed[f"{name}.qweight"][0, 5]) >> 8 & 15
    zero = (int(packed[f"{name}.qzeros"][0, 0]) >> 20 & 15) + offset
    assert stored[f"{name}.weight"][5, 2].item() == float(packed[f"{name}.scales"][0, 5]) * (code - zero)


def test_restored_weights_are_served_with_the_golden_answers(teacher: Path, problems: Path) -> None:
    settings = config(teacher, problems)
    run(settings)
    restored = problems.parent / "restored"
    run(QuantizeConfig(model=settings.output, output=restored, method="dequantize:F16"))
    manifest = verify_files(restored)
    assert (manifest.kind, manifest.method) == ("hf", "dequantize:F16")
    assert manifest.golden == read_manifest(teacher).golden


def test_other_answers_to_golden_prompts_are_refused(teacher: Path, problems: Path) -> None:
    """A teacher whose weights were blurred after it had recorded its answers."""
    blurred = problems.parent / "blurred"
    shutil.copytree(teacher, blurred)
    stored = weights(blurred)
    for layer in range(4):
        name = f"model.layers.{layer}.self_attn.v_proj.weight"
        noise = torch.randn(stored[name].shape, generator=torch.Generator().manual_seed(layer))
        stored[name] = (stored[name] + noise * stored[name].float().std()).bfloat16()
    safetensors.torch.save_file(stored, blurred / "model.safetensors", metadata={"format": "pt"})
    golden = read_manifest(teacher).golden
    write_manifest(blurred, name="blurred", kind="hf", method="scratch", golden=golden)
    with pytest.raises(ParityError, match=r"golden prompts are answered otherwise .* calibrate on rows"):
        run(config(blurred, problems))
    assert not list(problems.parent.glob("*quantized*"))


@pytest.mark.parametrize(
    ("changes", "gptq", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, {}, "architecture GPT2LMHeadModel"),
        ({"num_hidden_layers": 3}, {}, r"lacks 9 tensors, model\.layers\.2"),
        ({"num_hidden_layers": 1}, {}, "9 tensors are unknown"),
        ({"intermediate_size": 96}, {"group_size": -1}, r"by config\.json \[96, 64\]"),
        ({"quantization_config": {"bits": 4}}, {}, "already quantized"),
        ({}, {"group_size": 128}, r"gate_proj\.weight has 64 inputs, .*\(32, 64, -1\)"),
        ({}, {"device": "cuda"}, "finds no GPU here"),
    ],
)
def test_what_cannot_be_quantized_is_refused_before_any_work(
    model_folder: Path, sentences: Path, edit_json: Any, changes: Any, gptq: Any, said: str
) -> None:
    if gptq.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    edit_json(model_folder / "config.json", changes)
    with pytest.raises(QuantizeError, match=said):
        run(config(model_folder, sentences, **gptq))
    assert not (sentences.parent / "quantized").exists()


def test_sides_that_kernels_do_not_take_are_refused(tmp_path: Path, sentences: Path, tiny: Any) -> None:
    tiny.save(tmp_path / "model", "Llama", tiny.tokenizer(), intermediate_size=80)
    with pytest.raises(QuantizeError, match="multiples of 32"):
        run(config(tmp_path / "model", sentences, group_size=-1))


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "not finite"), (1e5, "more than float16 can")])
def test_values_that_the_format_cannot_hold_are_refused(
    model_folder: Path, sentences: Path, value: float, said: str
) -> None:
    stored = weights(model_folder)
    stored["model.layers.1.mlp.up_proj.weight"][3, 3] = value
    safetensors.torch.save_file(stored, model_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantizeError, match=rf"layers\.1\.mlp\.up_proj\.weight holds .*{said}"):
        run(config(model_folder, sentences))


class Killed(Exception):
    """Stands for a process that ends in the middle of a layer."""


def _dies_in_layer(index: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    from decant_quant.methods.gptq import layers, method

    whole = layers.quantize_layer

    def dying(decoder: Any, at: int, *rest: Any) -> Any:
        if at == index:
            raise Killed
        return whole(decoder, at, *rest)

    monkeypatch.setattr(method, "quantize_layer", dying)
    return lambda: monkeypatch.setattr(method, "quantize_layer", whole)


def test_a_run_that_died_in_the_middle_goes_on_and_ends_with_the_same_bytes(
    teacher: Path, problems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(teacher, problems)
    run(settings)
    expected = contents(settings.output)
    again = settings.model_copy(update={"output": problems.parent / "again"})
    revive = _dies_in_layer(2, monkeypatch)
    with pytest.raises(Killed):
        run(again)
    kept = problems.parent / ".again.layers"
    assert sorted(path.name for path in kept.glob("*.safetensors")) == [
        "layer-00000.safetensors",
        "layer-00001.safetensors",
    ]
    before = [path.stat().st_mtime_ns for path in sorted(kept.glob("*.safetensors"))]
    revive()
    run(again)
    assert contents(again.output) == expected
    after = [(again.output / f"model-0000{n}-of-00005.safetensors").stat().st_mtime_ns for n in (1, 2)]
    assert after == before
    assert not kept.exists()


def test_a_process_killed_outright_goes_on_and_ends_with_the_same_bytes(
    teacher: Path, problems: Path
) -> None:
    """SIGKILL to a child as soon as its second layer is on disk; a fresh process finishes."""
    settings = config(teacher, problems)
    command = [sys.executable, "-m", "decant", "quantize", str(teacher), "--method", "gptq"]
    calibration = settings.calibration
    for key, value in {
        "gptq.group_size": 32,
        "calibration.dataset": problems,
        "calibration.rows": calibration.rows,
        "calibration.heldout_rows": calibration.heldout_rows,
    }.items():
        command += ["--set", f"{key}={value}"]
    output = problems.parent / "killed"
    child = subprocess.Popen([*command, "--output", str(output)], stderr=subprocess.DEVNULL)
    record = problems.parent / ".killed.layers" / "layer-00001.json"
    while child.poll() is None and not record.is_file():
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not output.exists()
    assert record.is_file()
    run(settings.model_copy(update={"output": output}))
    run(settings)
    assert contents(output) == contents(settings.output)


def test_layers_of_another_run_are_not_gone_on_from(
    teacher: Path, problems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(teacher, problems)
    revive = _dies_in_layer(2, monkeypatch)
    with pytest.raises(Killed):
        run(settings)
    revive()
    run(config(teacher, problems, bits=8))
    described = json.loads((settings.output / "config.json").read_text())["quantization_config"]
    assert described["bits"] == 8
    assert weights(settings.output)["model.layers.0.mlp.up_proj.qweight"].shape[0] == 128 * 8 // 32


def test_gptq_without_rows_says_what_to_give(model_folder: Path, sentences: Path) -> None:
    with pytest.raises(DecantError, match=r"--set calibration\.dataset=FILE"):
        run(config(model_folder, sentences).model_copy(update={"calibration": CalibrationConfig()}))
