"""A teacher's scores from `decant logits` to training: what is stored, and whose scores are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

import torch

from decant.artifact import read_manifest
from decant.errors import ArtifactError, TrainingError
from decant.task import TaskConfig
from decant_distill.train.command import run as train
from decant_distill.train.config import TrainConfig
from decant_distill.train.encode import encode
from decant_distill.train.logits import LogitsConfig, run
from decant_distill.train.rows import read_lessons
from decant_distill.train.student import load_base, load_tokenizer
from decant_distill.train.teacher_scores import TeacherScores, conversation_key, open_scores


def logits_config(teacher: Path, data: Path, output: Path, **changes: Any) -> LogitsConfig:
    return LogitsConfig(teacher=teacher, data=data, output=output, dtype="float32", threads=1, **changes)


@pytest.fixture(scope="module")
def scored(student_base: Path, curated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The curated rows' scores by the little student itself."""
    output = tmp_path_factory.mktemp("scores") / "scores"
    run(logits_config(student_base, curated, output))
    return output


def completions(data: Path, base: Path) -> Any:
    found = read_lessons(data, task=TaskConfig(), placement="rationale_then_answer").kept
    return found, encode(load_tokenizer(base), found, base="b")


def records(scores: TeacherScores, lesson: Any) -> Any:
    shard, start, length = scores.places[conversation_key(lesson)]
    return scores.shards[shard][start : start + length]


def test_stored_scores_are_the_teachers_own_log_probabilities(
    scored: Path, curated: Path, student_base: Path
) -> None:
    lessons, examples = completions(curated, student_base)
    model = load_base(student_base, dtype="float32", nf4=False).eval()
    for i in (0, 57, 199):
        ids = torch.tensor(examples[i].ids[None].astype(np.int64))
        with torch.inference_mode():
            wanted = model(ids).logits[0, examples[i].prompt_tokens - 1 : -1].log_softmax(-1)
        found = records(open_scores(scored), lessons[i])
        ids = torch.tensor(found["ids"].astype(np.int64))
        logprobs = torch.tensor(found["logprobs"].astype(np.float32))
        assert torch.allclose(logprobs, wanted.gather(1, ids), atol=0.01)
        assert torch.equal(ids[:, 0], wanted.argmax(-1))
        sums = logprobs.exp().sum(1) + torch.tensor(found["tail"].astype(np.float32)).exp()
        assert torch.allclose(sums, torch.ones(len(found)), atol=1e-3)


def test_sixteen_tokens_take_less_than_110_bytes(scored: Path) -> None:
    scores = open_scores(scored)
    size_bytes = sum(path.stat().st_size for path in scored.iterdir() if path.suffix == ".npy")
    assert (scores.info.k, size_bytes / scores.info.tokens < 110) == (16, True)
    assert scores.info.model_copy(update={"vocabulary": 150_000}).record().itemsize < 106


def test_a_killed_scoring_goes_on_after_its_last_whole_shard(
    scored: Path, student_base: Path, curated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("decant_distill.train.logits._ROWS_PER_SHARD", 64)
    run(logits_config(student_base, curated, tmp_path / "whole"))
    partial = tmp_path / "again.partial"
    shutil.copytree(tmp_path / "whole", partial)
    claim = json.loads((partial / "teacher.json").read_bytes()) | {"tokens": 0, "bytes_per_token": 0.0}
    (partial / "teacher.json").write_text(json.dumps(claim, indent=1, ensure_ascii=False) + "\n")
    (partial / "index-00003.npy").unlink()
    marked = np.load(partial / "shard-00000.npy")
    marked["tail"] = -1.0
    np.save(partial / "shard-00000.npy", marked)
    run(logits_config(student_base, curated, tmp_path / "again"))
    left, right = open_scores(tmp_path / "whole"), open_scores(tmp_path / "again")
    assert all(np.array_equal(a, b) for a, b in zip(left.shards[1:], right.shards[1:], strict=True))
    assert (right.shards[0]["tail"] == -1.0).all(), "a shard that was whole is not scored again"


def test_the_shards_of_another_job_are_refused(student_base: Path, curated: Path, tmp_path: Path) -> None:
    (tmp_path / "s.partial").mkdir()
    (tmp_path / "s.partial" / "teacher.json").write_text("{}")
    with pytest.raises(TrainingError, match="another teacher, data or settings"):
        run(logits_config(student_base, curated, tmp_path / "s"))


def train_config(base: Path, data: Path, output: Path, scores: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "learning_rate": 3e-3,
        "batch_tokens": 512,
        "token_budget": 1000,
        "golden_rows": 2,
        "golden_tokens": 8,
        "threads": 1,
    }
    return TrainConfig(base=base, data=data, output=output, teacher_scores=scores, **{**settings, **changes})


def test_a_student_learns_from_scores_and_remembers_that_it_did(
    scored: Path, student_base: Path, curated: Path, tmp_path: Path
) -> None:
    train(train_config(student_base, curated, tmp_path / "s", scored, teacher_weight=0.7))
    assert read_manifest(tmp_path / "s").recipe["teacher_weight"] == 0.7


def test_a_teacher_with_another_tokenizer_is_refused(
    scored: Path, student_base: Path, curated: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(student_base, tmp_path / "base")
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(base)
    with pytest.raises(TrainingError, match="another tokenizer than the student's"):
        train(train_config(base, curated, tmp_path / "s", scored))


def test_rows_that_were_never_scored_are_named(
    scored: Path, student_base: Path, curated: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"no scores for line 1 .*same placement"):
        train(train_config(student_base, curated, tmp_path / "s", scored, placement="answer_only"))


def test_samples_at_another_temperature_are_refused(
    student_base: Path, curated: Path, tmp_path: Path
) -> None:
    run(logits_config(student_base, curated, tmp_path / "sampled", kind="sampled", k=8))
    config = train_config(
        student_base, curated, tmp_path / "s", tmp_path / "sampled", teacher_temperature=2.0
    )
    with pytest.raises(TrainingError, match="leave teacher_temperature at 1"):
        train(config)


def test_scores_that_lost_a_shard_are_refused(scored: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(scored, tmp_path / "copy")
    (copy / "shard-00000.npy").unlink()
    with pytest.raises(ArtifactError, match="a shard is missing"):
        open_scores(copy)


def test_a_teacher_whose_output_is_padded_beyond_the_tokenizer_gives_the_same_scores(
    scored: Path, student_base: Path, curated: Path, tmp_path: Path
) -> None:
    tokenizer, model = load_tokenizer(student_base), load_base(student_base, dtype="float32", nf4=False)
    model.resize_token_embeddings(len(tokenizer) + 64)
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] = model.lm_head.weight[0] * 2
    model.save_pretrained(tmp_path / "padded")
    tokenizer.save_pretrained(tmp_path / "padded")
    run(logits_config(tmp_path / "padded", curated, tmp_path / "s"))
    plain, padded = open_scores(scored), open_scores(tmp_path / "s")
    assert padded.info.vocabulary == plain.info.vocabulary
    assert all(
        np.allclose(a["logprobs"], b["logprobs"], atol=0.01)
        for a, b in zip(plain.shards, padded.shards, strict=True)
    )
