"""The training side: batches fixed in advance, trustworthy renderings, a run that survives being killed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

import torch
from safetensors.torch import load_file, save_file

from decant.artifact import read_manifest, verify_files
from decant.errors import ArtifactError, TrainingError
from decant.task import TaskConfig
from decant_distill.train.batches import plan_batches
from decant_distill.train.checkpoints import Checkpoints, RunProgress
from decant_distill.train.command import run
from decant_distill.train.config import TrainConfig
from decant_distill.train.encode import encode
from decant_distill.train.objective import completion_loss, pad_batch
from decant_distill.train.rows import Lesson, read_lessons
from decant_distill.train.student import build_student, load_base, load_tokenizer, nf4_layers
from tests.distill.killed_training import killed_at

LENGTHS = [10 + (i * 37) % 90 for i in range(500)]


def test_a_plan_stops_with_the_batch_that_spends_the_budget() -> None:
    plan = plan_batches(LENGTHS, token_budget=5000, batch_tokens=800, seed=1)
    assert 5000 <= plan.total_tokens < 5000 + 800
    assert plan.total_tokens - plan.tokens[-1] < 5000


def test_a_plan_is_the_same_for_the_same_seed_only() -> None:
    plans = [plan_batches(LENGTHS, token_budget=9000, batch_tokens=800, seed=seed) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_a_longer_budget_goes_on_where_the_shorter_one_stopped() -> None:
    short, long = (plan_batches(LENGTHS, token_budget=n, batch_tokens=800, seed=1) for n in (9000, 60000))
    assert long.batches[: len(short.batches)] == short.batches


def test_an_epoch_has_every_row_once_before_any_comes_twice() -> None:
    plan = plan_batches(LENGTHS, token_budget=sum(LENGTHS), batch_tokens=800, seed=3)
    assert sorted(row for batch in plan.batches for row in batch) == list(range(len(LENGTHS)))


@pytest.mark.parametrize("bucketing", [True, False])
def test_no_batch_computes_on_more_than_batch_tokens(bucketing: bool) -> None:
    plan = plan_batches(LENGTHS, token_budget=50000, batch_tokens=800, seed=1, bucketing=bucketing)
    assert max(len(batch) * max(LENGTHS[row] for row in batch) for batch in plan.batches) <= 800


def test_bucketing_leaves_little_padding() -> None:
    plan = plan_batches(LENGTHS, token_budget=30000, batch_tokens=800, seed=1)
    assert plan.padded_tokens < 1.05 * plan.total_tokens


def lessons(path: Path, *rows: Any, placement: Any = "rationale_then_answer") -> Any:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return read_lessons(path, task=TaskConfig(), placement=placement)


ROW = {
    "prompt": [{"role": "user", "content": "It shows 7. What now?"}],
    "reasoning": "Start 7.",
    "answer": "7",
}


@pytest.mark.parametrize(
    ("placement", "completion"),
    [
        ("answer_only", "Answer: 7"),
        ("rationale_then_answer", "Start 7.\nAnswer: 7"),
        ("answer_then_rationale", "Answer: 7\nStart 7."),
    ],
)
def test_a_row_is_taught_with_its_rationale_where_it_was_asked_for(
    placement: str, completion: str, tmp_path: Path
) -> None:
    assert lessons(tmp_path / "d.jsonl", ROW, placement=placement).kept[0].completion == completion


def test_an_answer_is_read_out_of_a_completion_that_stands_alone(tmp_path: Path) -> None:
    row = {"prompt": "What now?", "completion": "So it is. \nAnswer: 4"}
    (lesson,) = lessons(tmp_path / "d.jsonl", row).kept
    assert (lesson.prompt[0]["role"], lesson.completion) == ("user", "So it is.\nAnswer: 4")


def test_rows_that_teach_nothing_are_counted_by_reason(tmp_path: Path) -> None:
    bad = [{**ROW, "answer": " "}, {**ROW, "reasoning": None}, {**ROW, "prompt": 3}, "{oops\n", ROW]
    found = lessons(tmp_path / "d.jsonl", *bad)
    assert len(found.kept) == 1
    assert sum(found.dropped.values()) == 4
    assert found.dropped["no answer"] == found.dropped["no reasoning"] == 1


def test_the_gold_of_a_plain_dataset_is_taught_as_its_task_says(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"text": "a solver", "label": "math"}\n{"text": "no label"}\n{"label": "no text"}\n')
    task = TaskConfig(prompt="Section of: {text}", gold_field="label")
    found = read_lessons(data, task=task, placement="answer_only", gold=True)
    assert [(lesson.prompt[0]["content"], lesson.completion) for lesson in found.kept] == [
        ("Section of: a solver", "Answer: math")
    ]
    assert found.dropped == {"no answer": 1, "lacks the field text": 1}


def test_a_dataset_without_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="2 with no answer"):
        lessons(tmp_path / "d.jsonl", {"prompt": "a"}, {"prompt": "b"})


LESSON = Lesson(
    line=1, prompt=({"role": "user", "content": "It shows 7."},), completion="Start 7.\nAnswer: 7"
)


def test_the_loss_covers_the_completion_and_its_end_token(student_base: Path) -> None:
    tokenizer = load_tokenizer(student_base)
    (example,) = encode(tokenizer, [LESSON], base="b")
    assert tokenizer.decode(example.ids[: example.prompt_tokens]) == "<|user|>It shows 7.<|end|><|assistant|>"
    assert tokenizer.decode(example.ids[example.prompt_tokens :]) == "Start 7.\nAnswer: 7<|end|>"


def test_what_a_template_writes_after_the_end_token_is_left_out(student_base: Path) -> None:
    tokenizer = load_tokenizer(student_base)
    plain = encode(tokenizer, [LESSON], base="b")[0].ids.tolist()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>'", "<|end|>\\n'")
    assert encode(tokenizer, [LESSON], base="b")[0].ids.tolist()[-1] == plain[-1] == tokenizer.eos_token_id


TEMPLATES = {
    "a prefix": "{% for m in messages %}{{ loop.length }}{{ m.content }}<|end|>{% endfor %}",
    "no end token": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "changes the answer": "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('Answer')[-1] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
}


@pytest.mark.parametrize("problem", TEMPLATES)
def test_a_template_that_serving_could_not_repeat_is_refused(problem: str, student_base: Path) -> None:
    tokenizer = load_tokenizer(student_base)
    tokenizer.chat_template = TEMPLATES[problem]
    with pytest.raises(TrainingError, match=problem):
        encode(tokenizer, [LESSON], base="b")


@pytest.mark.parametrize("template", ["{% for m in", "{{ raise_exception('no system role') }}"])
def test_a_template_that_cannot_render_is_one_line(template: str, student_base: Path) -> None:
    tokenizer = load_tokenizer(student_base)
    tokenizer.chat_template = template
    with pytest.raises(TrainingError, match=r"chat template refuses line 1 .*roles: user"):
        encode(tokenizer, [LESSON], base="b")


def test_a_tokenizer_without_an_end_token_is_refused(student_base: Path) -> None:
    tokenizer = load_tokenizer(student_base)
    tokenizer.eos_token = None
    with pytest.raises(TrainingError, match="no end token; set eos_token"):
        encode(tokenizer, [LESSON], base="b")


def test_padding_without_a_mask_gives_the_loss_of_every_row_alone(student_base: Path, curated: Path) -> None:
    tokenizer, model = load_tokenizer(student_base), load_base(student_base, dtype="float32", nf4=False)
    found = read_lessons(curated, task=TaskConfig(), placement="rationale_then_answer").kept[:7]
    examples = encode(tokenizer, found, base="b")
    batch = pad_batch(examples)
    together = completion_loss(
        model(batch["input_ids"], logits_to_keep=batch["logits_to_keep"]).logits, batch["labels"]
    )
    sums, count = 0.0, 0
    for example in examples:
        ids = torch.tensor(example.ids[None], dtype=torch.long)
        labels = ids.clone()
        labels[:, : example.prompt_tokens] = -100
        answer = len(example.ids) - example.prompt_tokens
        sums, count = sums + model(ids, labels=labels).loss.item() * answer, count + answer
    assert together.item() == pytest.approx(sums / count, rel=1e-5)


def config(base: Path, data: Path, output: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "learning_rate": 3e-3,
        "batch_tokens": 512,
        "token_budget": 4000,
        "save_every_steps": 2,
        "threads": 1,
    }
    return TrainConfig(base=base, data=data, output=output, **{**settings, **changes})


def test_gradients_pass_through_nf4_as_through_its_dequantized_weights(
    student_base: Path, tmp_path: Path
) -> None:
    from bitsandbytes.functional import dequantize_4bit

    student = build_student(config(student_base, tmp_path, tmp_path, compute_dtype="float32"))
    layer: Any = next(iter(nf4_layers(student).values()))
    given = torch.randn(3, 64, requires_grad=True)
    layer(given).sum().backward()
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert given.grad is not None
    assert torch.allclose(given.grad, torch.ones(3, layer.out_features) @ weight)


def test_adapters_are_float32_on_every_linear_layer_of_a_bf16_nf4_base(
    student_base: Path, tmp_path: Path
) -> None:
    student = build_student(config(student_base, tmp_path, tmp_path))
    learning = {name: p.dtype for name, p in student.named_parameters() if p.requires_grad}
    assert len(nf4_layers(student)) == 14
    assert len(learning) == 2 * 14
    assert set(learning.values()) == {torch.float32}


def test_answering_leaves_an_nf4_weight_as_it_was(student_base: Path, tmp_path: Path) -> None:
    student = build_student(config(student_base, tmp_path, tmp_path))
    before = {name: layer.weight.data.clone() for name, layer in nf4_layers(student).items()}
    with torch.inference_mode():
        student.eval()(torch.tensor([[1, 2, 3]]))
    assert all(torch.equal(before[name], layer.weight.data) for name, layer in nf4_layers(student).items())


def test_targets_that_match_no_layer_are_named(student_base: Path, curated: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"wq matches no linear layer .*q_proj"):
        run(config(student_base, curated, tmp_path / "s", targets=("q_proj", "wq")))


def test_too_many_overlong_rows_are_an_error(student_base: Path, curated: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="of 200 rows are longer than 60 tokens"):
        run(config(student_base, curated, tmp_path / "s", max_length=60))


def test_a_folder_without_a_model_is_refused(curated: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no tokenizer"):
        run(config(tmp_path, curated, tmp_path / "s"))


def test_a_loss_that_is_not_a_number_stops_the_run(student_base: Path, curated: Path, tmp_path: Path) -> None:
    base = shutil.copytree(student_base, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="became nan at step 1 of"):
        run(config(base, curated, tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def checkpoint(folder: Path, step: int, *, whole: bool) -> None:
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    if whole:
        Checkpoints(folder).seal(RunProgress(step=step, wall_s=1.0, losses=(1.0,) * step, resumed=0))


def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step, whole in ((8, True), (10, True), (12, False)):
        checkpoint(tmp_path, step, whole=whole)
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    assert (found[0].name, found[1].step) == ("checkpoint-10", 10)


def test_checkpoints_of_another_run_are_refused_by_what_differs(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.claim({"seed": 1, "data": "a"})
    checkpoint(tmp_path, 2, whole=True)
    checkpoints.claim({"seed": 1, "data": "a"})
    with pytest.raises(TrainingError, match="a run with other seed; restore"):
        checkpoints.claim({"seed": 2, "data": "a"})


def test_a_run_that_never_saved_binds_nobody(tmp_path: Path) -> None:
    Checkpoints(tmp_path).claim({"seed": 1})
    Checkpoints(tmp_path).claim({"seed": 2})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(
        folder
        / ("adapter_model.safetensors" if (folder / "adapter_config.json").exists() else "model.safetensors")
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_run_ends_bitwise_like_one_that_was_never_killed(
    student_base: Path, curated: Path, tmp_path: Path
) -> None:
    settings = {"token_budget": 30000, "lora_dropout": 0.1, "save_every_steps": 5}
    whole = config(student_base, curated, tmp_path / "whole", **settings)
    broken = config(student_base, curated, tmp_path / "broken", **settings)
    saved = tmp_path / "broken.checkpoints" / "checkpoint-15" / "progress.json"
    killed_at(broken, saved.exists, tmp_path)
    assert not (tmp_path / "broken").exists()
    run(whole)
    run(broken)
    left, right = weights_of(tmp_path / "whole"), weights_of(tmp_path / "broken")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    manifests = [read_manifest(tmp_path / name) for name in ("whole", "broken")]
    assert manifests[0].golden == manifests[1].golden
    curves = [(m.training or {})["loss_curve"] for m in manifests]
    assert curves[0] == curves[1]
    assert (manifests[1].training or {})["resumed"] == 1
    assert not (tmp_path / "broken.checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_each_method_learns_and_leaves_a_whole_artifact(
    method: str, student_base: Path, curated: Path, tmp_path: Path
) -> None:
    run(config(student_base, curated, tmp_path / "s", method=method, token_budget=60000, batch_tokens=2048))
    manifest = verify_files(tmp_path / "s")
    curve = (manifest.training or {})["loss_curve"]
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    assert manifest.kind == ("hf" if method == "full" else "adapter")
    assert manifest.golden is not None
    assert len(manifest.golden.prompts) == 8
