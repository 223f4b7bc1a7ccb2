"""The parity guard on the training side: what is recorded is what the model says, and each break is named."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

import torch

from decant.golden import TOLERANCES, GoldenReport, GoldenSet, compare
from decant_distill.tokenizer import train_tokenizer
from decant_distill.train.config import TrainConfig
from decant_distill.train.observe import as_observation, record_golden
from decant_distill.train.student import build_student, load_base, load_tokenizer

CONVERSATIONS = [
    [{"role": "user", "content": question}]
    for question in ("It shows 7. It goes up by 2. What now?", "It shows 3. What now?", "What now?")
]
MOST_TOKENS = 16


@pytest.fixture
def model(student_base: Path) -> Any:
    return load_base(student_base, dtype="float32", nf4=False)


@pytest.fixture
def tokenizer(student_base: Path, model: Any) -> Any:
    """The base's tokenizer, its end token the fifth one that this model says to the first prompt."""
    tokenizer = load_tokenizer(student_base)
    said = record(model, tokenizer).prompts[0].token_ids
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(said[4])
    return tokenizer


@pytest.fixture
def golden(model: Any, tokenizer: Any) -> GoldenSet:
    return record(model, tokenizer)


def record(model: Any, tokenizer: Any) -> GoldenSet:
    return record_golden(model, tokenizer, CONVERSATIONS, stage="trained", max_tokens=MOST_TOKENS)


def check(golden: GoldenSet, model: Any, tokenizer: Any, *, precision: str = "bf16") -> GoldenReport:
    """The report of a later stage that has this model and this tokenizer."""
    seen = [as_observation(prompt) for prompt in record(model, tokenizer).prompts]
    return compare(golden, seen, stage="served", tolerance=TOLERANCES[precision])


def test_an_answer_ends_before_its_end_token_or_at_the_limit(golden: GoldenSet) -> None:
    stopped = golden.prompts[0]
    assert (stopped.finish, len(stopped.margins)) == ("stop", len(stopped.token_ids) + 1)
    assert golden.eos_id not in stopped.token_ids
    assert all(len(p.token_ids) == MOST_TOKENS for p in golden.prompts if p.finish == "length")


def test_logprobs_are_those_of_one_pass_over_prompt_and_answer(golden: GoldenSet, model: Any) -> None:
    prompt = golden.prompts[0]
    ids = torch.tensor([[*prompt.prompt_ids, *prompt.token_ids]])
    with torch.inference_mode():
        logprobs = model(ids).logits[0, len(prompt.prompt_ids) - 1 : -1].log_softmax(-1)
    assert logprobs.argmax(-1).tolist() == list(prompt.token_ids)
    assert logprobs.max(-1).values.tolist() == pytest.approx(prompt.logprobs, abs=1e-4)


def test_a_model_agrees_with_itself_to_the_last_digits(golden: GoldenSet, model: Any, tokenizer: Any) -> None:
    report = check(golden, model, tokenizer, precision="exact")
    assert (report.ok, report.checked, report.flips) == (True, len(CONVERSATIONS), 0)


def test_another_template_is_named(golden: GoldenSet, model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|' +", "'\\n<|' +")
    assert check(golden, model, tokenizer).breaks[0].kind == "template"


def test_a_swapped_tokenizer_is_named(golden: GoldenSet, model: Any, tokenizer: Any) -> None:
    other = train_tokenizer(["What now? It goes up by 7. It shows 2.", "It shows the up by What goes"] * 3)
    assert other.chat_template == tokenizer.chat_template
    assert check(golden, model, other).breaks[0].kind == "tokenizer"


def test_a_missing_end_token_is_named(golden: GoldenSet, model: Any, tokenizer: Any) -> None:
    tokenizer.eos_token = "<|reserved_0|>"
    assert check(golden, model, tokenizer).breaks[0].kind == "eos"


def test_a_permuted_weight_is_named(golden: GoldenSet, model: Any, tokenizer: Any) -> None:
    weight = model.get_submodule("model.layers.1.mlp.down_proj").weight
    with torch.no_grad():
        weight.copy_(weight[torch.randperm(weight.shape[0], generator=torch.Generator().manual_seed(0))])
    assert check(golden, model, tokenizer).breaks[0].kind == "weights"


def test_a_student_over_nf4_says_the_same_after_it_was_saved_and_loaded(
    student_base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    student = build_student(TrainConfig(base=student_base, data=student_base, output=tmp_path))
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.001)
    golden = record(student, tokenizer)
    student.save_pretrained(tmp_path)
    loader: Any = PeftModel
    loaded = loader.from_pretrained(load_base(student_base, dtype="bfloat16", nf4=True), tmp_path)
    assert check(golden, loaded, tokenizer, precision="exact").ok
