"""What a step minimises: tasks, weights, and a teacher's distributions, exact where they are whole."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import numpy as np
import torch

from decant.errors import TrainingError
from decant.task import TaskConfig
from decant_distill.train.config import TrainConfig
from decant_distill.train.encode import Example, encode
from decant_distill.train.logits import most_likely, sampled
from decant_distill.train.objective import (
    Objective,
    completion_loss,
    sampled_cross_entropy,
    topk_divergence,
)
from decant_distill.train.rows import Lesson, Weighing, read_lessons
from decant_distill.train.student import load_base, load_tokenizer

ROW = {"prompt": "It shows 7. What now?", "reasoning": "Start 7.", "answer": "7"}


def lessons(path: Path, *rows: Any, **options: Any) -> tuple[Lesson, ...]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {"placement": "multitask", **options}
    return read_lessons(path, task=TaskConfig(), **settings).kept


def test_multitask_teaches_answer_and_rationale_as_two_tasks(tmp_path: Path) -> None:
    weighing = Weighing(rationale_weight=0.5, rationale_prefix="[why] ")
    answer, rationale = lessons(tmp_path / "d.jsonl", ROW, weighing=weighing)
    assert (answer.prompt[0]["content"], answer.completion) == ("It shows 7. What now?", "Answer: 7")
    assert (rationale.prompt[0]["content"], rationale.completion) == (
        "[why] It shows 7. What now?",
        "Start 7.",
    )
    assert (answer.weight, rationale.weight) == (1.0, 0.5)


def test_several_rationales_of_a_prompt_can_share_the_weight_of_one(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "reasoning": "It is 7."}, {**ROW, "prompt": "Another?"}]
    found = lessons(
        tmp_path / "d.jsonl",
        *rows,
        placement="rationale_then_answer",
        weighing=Weighing(prompts_alike=True),
    )
    assert [lesson.weight for lesson in found] == [0.5, 0.5, 1.0]


def test_the_answers_weight_lies_on_the_answers_line_only(student_base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(student_base)
    found = lessons(tmp_path / "d.jsonl", ROW, placement="rationale_then_answer")
    (example,) = encode(tokenizer, found, base="b", answer_weight=4.0)
    assert example.emphasis is not None
    heavy = [i for i, weight in enumerate(example.emphasis) if weight == 4.0]
    assert tokenizer.decode(example.ids[example.prompt_tokens :][heavy]).strip() == "Answer: 7"


def example(prompt: int, completion: int, **fields: Any) -> Example:
    ids = np.arange(1, prompt + completion + 1, dtype=np.int32)
    return Example(ids=ids, prompt_tokens=prompt, **fields)


def loss_of(objective: Objective, examples: list[Example], logits: torch.Tensor) -> float:
    return objective.loss(logits, objective.batch(examples)["labels"]).item()


def test_each_example_or_each_token_counts_alike() -> None:
    examples, logits = [example(2, 6), example(3, 1)], torch.randn(2, 8, 32)
    alone = [loss_of(Objective(), [e], logits[i : i + 1, : len(e.ids)]) for i, e in enumerate(examples)]
    tokens, rows = (
        loss_of(Objective(normalization=normalization), examples, logits)
        for normalization in ("token", "example")
    )
    assert tokens == pytest.approx((6 * alone[0] + alone[1]) / 7, rel=1e-5)
    assert rows == pytest.approx((alone[0] + alone[1]) / 2, rel=1e-5)


def test_weights_of_one_change_nothing() -> None:
    examples, logits = [example(2, 4), example(1, 3)], torch.randn(2, 6, 32)
    labels = Objective().batch(examples)["labels"]
    weighted = [example(2, 4, emphasis=np.ones(4, np.float32)), example(1, 3)]
    assert loss_of(Objective(), weighted, logits) == pytest.approx(completion_loss(logits, labels).item())


def test_an_examples_weight_scales_its_share_of_the_loss() -> None:
    logits = torch.randn(2, 6, 32)
    pair = [example(2, 4), example(2, 4, weight=3.0)]
    alone = [loss_of(Objective(), [pair[0]], logits[i : i + 1]) for i in (0, 1)]
    assert loss_of(Objective(), pair, logits) == pytest.approx((alone[0] + 3 * alone[1]) / 4, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_tokens_of_a_teacher_give_the_exact_divergence(temperature: float) -> None:
    teacher, student = torch.randn(5, 40) * 3, torch.randn(5, 40)
    found = topk_divergence(student.log_softmax(-1), *most_likely(teacher, k=40), temperature=temperature)
    p, q = (torch.log_softmax(logits / temperature, -1) for logits in (teacher, student))
    assert torch.allclose(found, (p.exp() * (p - q)).sum(-1) * temperature**2, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_student_that_agrees_with_the_teachers_top_tokens_has_no_divergence(temperature: float) -> None:
    logits = torch.randn(5, 40)
    found = topk_divergence(logits.log_softmax(-1), *most_likely(logits, k=4), temperature=temperature)
    assert torch.allclose(found, torch.zeros(5), atol=1e-5)


def test_the_tail_bucket_keeps_mass_off_tokens_the_teacher_does_not_believe_in() -> None:
    scores = most_likely(torch.tensor([[4.0, 3.0, 0.0, 0.0]]), k=2)
    astray = torch.tensor([[4.0, 3.0, 9.0, 0.0]], requires_grad=True)
    topk_divergence(astray.log_softmax(-1), *scores).sum().backward()
    assert astray.grad is not None
    assert astray.grad[0, 2] > 0.5


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_sampled_distillation_is_unbiased_in_loss_and_gradient(temperature: float) -> None:
    teacher, student = torch.randn(1, 30) * 2, torch.randn(1, 30, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    many = teacher.expand(20_000, -1)
    ids, weights = sampled(many, k=4, temperature=temperature, generator=generator)
    estimates = sampled_cross_entropy(student.log_softmax(-1).expand(20_000, -1), ids, weights)
    p = teacher.softmax(-1)
    exact = -(p * student.log_softmax(-1)).sum()
    (gradient,) = torch.autograd.grad(estimates.mean(), student, retain_graph=True)
    (wanted,) = torch.autograd.grad(exact, student)
    error = estimates.std().item() / 20_000**0.5
    assert abs(estimates.mean().item() - exact.item()) < 4 * error
    assert torch.allclose(gradient, wanted, atol=0.02)


def test_a_teachers_share_is_mixed_with_cross_entropy() -> None:
    record = np.dtype([("token", "<u2"), ("ids", "<u2", (32,)), ("logprobs", "<f2", (32,)), ("tail", "<f2")])
    teacher = torch.randn(4, 32)
    ids, logprobs, tail = most_likely(teacher, k=32)
    records = np.zeros(4, dtype=record)
    records["ids"], records["logprobs"], records["tail"] = ids.numpy(), logprobs.numpy(), tail.numpy()
    scored, logits = example(2, 4, teacher=records), torch.randn(1, 6, 32)
    plain = loss_of(Objective(), [scored], logits)
    taught = loss_of(Objective(teacher_weight=1.0), [scored], logits)
    mixed = loss_of(Objective(teacher_weight=0.25), [scored], logits)
    p, q = (torch.log_softmax(values, -1) for values in (teacher, logits[0, 1:5]))
    assert taught == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-2)
    assert mixed == pytest.approx(0.75 * plain + 0.25 * taught, rel=1e-5)


def test_an_encoder_decoder_gets_the_loss_that_its_own_labels_give(t5_base: Path, tmp_path: Path) -> None:
    tokenizer, model = load_tokenizer(t5_base), load_base(t5_base, dtype="float32", nf4=False).eval()
    found = lessons(tmp_path / "d.jsonl", ROW, {**ROW, "reasoning": "It is 7, see."})
    examples = encode(tokenizer, found, base="b", two_sides=True)
    batch = Objective(decoder_start=model.config.decoder_start_token_id).batch(examples)
    labels = batch.pop("labels")
    own = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
    with torch.inference_mode():
        wanted = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=own).loss
        found_loss = completion_loss(model(**batch).logits, labels)
    assert found_loss.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_adapters_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for wrong in ({"adapter": "pissa"}, {"method": "full", "adapter": "dora"}):
        with pytest.raises(ValueError, match="use method"):
            TrainConfig.model_validate({"base": tmp_path, "data": tmp_path, "output": tmp_path, **wrong})


def test_a_vocabulary_without_line_breaks_cannot_end_an_answer_before_its_rationale(
    t5_base: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(t5_base)
    found = lessons(tmp_path / "d.jsonl", ROW, placement="answer_then_rationale")
    tokenizer.decode = lambda ids, **_options: "Answer: 7 Start 7."
    with pytest.raises(TrainingError, match="no line break"):
        encode(tokenizer, found, base="b", two_sides=True)
