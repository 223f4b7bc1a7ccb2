"""Adapters: served over the base as training loaded it, in NF4 where the method is QLoRA."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")

import bitsandbytes
import peft
import torch
import transformers

from decant.artifact import write_manifest
from decant.files import sha256_path
from decant.golden import GoldenReport, GoldenSet

pytestmark = pytest.mark.timeout(240)

Check = Callable[[Path], Awaitable[GoldenReport]]


def train_side(base: Path, *, nf4: bool) -> Any:
    """A student as training holds it: the base, in NF4 or not, and adapters with some weight."""
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    options: Any = {"quantization_config": quantization} if nf4 else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **options)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.modules.Linear4bit):
            # As training does: repacked weights would compute in bf16 whatever was asked for.
            module.support_avx512bf16_for_cpu = False
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, lora).eval()


def save(student: Any, golden: GoldenSet, folder: Path, *, base: Path, method: str, tokenizer: Any) -> Path:
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    details = {"base": str(base), "base_sha256": sha256_path(base), "recipe": {"compute_dtype": "float32"}}
    write_manifest(folder, name=folder.name, kind="adapter", method=method, golden=golden, details=details)
    return folder


@pytest.fixture
def qlora_student(tiny_folder: Path) -> Any:
    return train_side(tiny_folder, nf4=True)


async def test_a_qlora_adapter_answers_like_the_student_that_was_trained(
    qlora_student: Any,
    tiny_model: Any,
    tiny_folder: Path,
    tmp_path: Path,
    record_golden: Any,
    check_here: Check,
) -> None:
    golden = record_golden(qlora_student, tiny_model.tokenizer)
    options = {"base": tiny_folder, "tokenizer": tiny_model.tokenizer}
    report = await check_here(save(qlora_student, golden, tmp_path / "right", method="qlora", **options))
    assert report.ok
    assert report.max_logprob_gap < 1e-2


async def test_the_same_adapter_over_another_precision_is_caught(
    qlora_student: Any,
    tiny_model: Any,
    tiny_folder: Path,
    tmp_path: Path,
    record_golden: Any,
    check_here: Check,
) -> None:
    golden = record_golden(qlora_student, tiny_model.tokenizer)
    options = {"base": tiny_folder, "tokenizer": tiny_model.tokenizer}
    report = await check_here(save(qlora_student, golden, tmp_path / "wrong", method="lora", **options))
    assert [found.kind for found in report.breaks][:1] == ["weights"]
