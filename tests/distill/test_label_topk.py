"""`decant label --topk-logprobs`: what an endpoint gives becomes shards as `decant logits` writes them."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.responses import JSONResponse, Response

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch

from decant.errors import ConfigError, EndpointError, TrainingError
from decant.files import write_jsonl
from decant.task import TaskConfig
from decant_distill.label import run
from decant_distill.label_topk import NamedToken
from decant_distill.train.encode import Example, encode
from decant_distill.train.logits import LogitsConfig, most_likely
from decant_distill.train.logits import run as logits
from decant_distill.train.objective import topk_divergence
from decant_distill.train.rows import read_lessons
from decant_distill.train.student import load_base, load_tokenizer
from decant_distill.train.teacher_scores import TeacherScores, conversation_key, open_scores
from decant_distill.train.token_bytes import TokenNames
from tests.distill.loopback_teacher import Teacher, config_for, labels

Names = Callable[[int], dict[str, Any]]


class Knowing:
    """Answers each prompt with a row's own completion, scored by the little model token by token."""

    def __init__(self, base: Path, data: Path, *, given: int = 16) -> None:
        self.tokenizer = load_tokenizer(base)
        self.names: Names = self.by_text
        self.given = given
        self.model = load_base(base, dtype="float32", nf4=False).eval()
        self.lessons = read_lessons(data, task=TaskConfig(), placement="rationale_then_answer").kept[:12]
        self.examples = encode(self.tokenizer, self.lessons, base="b")
        self.by_prompt = {
            lesson.prompt[0]["content"]: (lesson.completion, example)
            for lesson, example in zip(self.lessons, self.examples, strict=True)
        }

    def by_text(self, token_id: int) -> dict[str, Any]:
        text = self.tokenizer.decode([token_id])
        return {"token": text, "bytes": None if "\ufffd" in text else list(text.encode())}

    def by_id(self, token_id: int) -> dict[str, Any]:
        return {"token": f"token_id:{token_id}"}

    def reply(self, prompt: str, body: dict[str, Any]) -> Response:
        text, example = self.by_prompt[prompt]
        content = self.scored(example, body["top_logprobs"]) if body["logprobs"] else None
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": content}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return JSONResponse({"id": "x", "model": "big", "choices": [choice], "usage": usage})

    def scored(self, example: Example, asked: int) -> list[dict[str, Any]]:
        ids = torch.tensor(example.ids[None].astype(np.int64))
        with torch.inference_mode():
            places = self.model(ids).logits[0, example.prompt_tokens - 1 : -1]
        best, logprobs, _ = most_likely(places, k=min(asked, self.given))
        told = example.ids[example.prompt_tokens :].tolist()
        # As endpoints do, it says nothing of the end token.
        return [
            {
                **self.names(told[i]),
                "logprob": -0.1,
                "top_logprobs": [
                    {**self.names(int(t)), "logprob": float(p)}
                    for t, p in zip(best[i], logprobs[i], strict=True)
                ],
            }
            for i in range(len(told) - 1)
        ]


@pytest.fixture(scope="module")
def knowing(student_base: Path, curated: Path) -> Knowing:
    return Knowing(student_base, curated)


def label(teacher: Teacher, knowing: Knowing, folder: Path, base: Path, **changes: Any) -> Any:
    teacher.reply = knowing.reply
    rows = [{"id": f"{n}", "prompt": lesson.prompt[0]["content"]} for n, lesson in enumerate(knowing.lessons)]
    config = config_for(teacher, folder, rows, **{"topk_logprobs": 16, "student": base, **changes})
    run(config)
    return config


def stored(scores: TeacherScores, lesson: Any) -> Any:
    shard, start, length = scores.places[conversation_key(lesson)]
    return scores.shards[shard][start : start + length]


@pytest.mark.parametrize("way", ["by_text", "by_id"])
def test_what_an_endpoint_says_is_what_the_weights_at_hand_would_have_said(
    way: str, teacher: Teacher, knowing: Knowing, student_base: Path, tmp_path: Path
) -> None:
    knowing.names = knowing.by_text if way == "by_text" else knowing.by_id
    config = label(teacher, knowing, tmp_path, student_base)
    data = tmp_path / "train.jsonl"
    write_jsonl(data, labels(config))
    logits(LogitsConfig(teacher=student_base, data=data, output=tmp_path / "own", dtype="float32"))
    told, own = open_scores(config.scores_path), open_scores(tmp_path / "own")
    assert told.info.tokenizer_sha256 == own.info.tokenizer_sha256
    assert told.info.template_sha256 == own.info.template_sha256
    assert told.info.bytes_per_token < 110
    for lesson in knowing.lessons:
        left, right = stored(told, lesson), stored(own, lesson)
        assert np.array_equal(left["token"], right["token"])
        for one, other in zip(by_token(left[:-1]), by_token(right[:-1]), strict=True):
            # A part of a character has no text of its own, and counts among all others.
            named = {t: p for t, p in other.items() if knowing.names(t).get("bytes", True) is not None}
            assert one == pytest.approx(named, abs=0.01)
        assert (left[-1]["ids"][0], left[-1]["logprobs"][0]) == (left[-1]["token"], 0.0)


def by_token(records: Any) -> list[dict[int, float]]:
    """The log probabilities of each place that are given, by token."""
    return [
        {int(t): float(p) for t, p in zip(record["ids"], record["logprobs"], strict=True) if not np.isnan(p)}
        for record in records
    ]


def test_scores_of_an_endpoint_are_trained_on_and_a_rerun_buys_nothing(
    teacher: Teacher, knowing: Knowing, student_base: Path, tmp_path: Path
) -> None:
    config = label(teacher, knowing, tmp_path, student_base)
    asked = len(teacher.bodies)
    shutil.rmtree(config.scores_path)
    run(config)
    assert len(teacher.bodies) == asked == 12
    lessons = read_lessons(config.output, task=TaskConfig(), placement="rationale_then_answer").kept
    examples = encode(knowing.tokenizer, lessons, base="b")
    scored = open_scores(config.scores_path).attach(
        examples, lessons, tokenizer=knowing.tokenizer, data=config.output
    )
    assert all(example.teacher is not None for example in scored)


def test_an_endpoint_that_gives_fewer_tokens_leaves_more_to_all_others(
    teacher: Teacher, student_base: Path, curated: Path, tmp_path: Path
) -> None:
    few = Knowing(student_base, curated, given=5)
    config = label(teacher, few, tmp_path, student_base)
    found = stored(open_scores(config.scores_path), few.lessons[0])[:-1]
    assert (np.isnan(found["logprobs"]).sum(axis=1) >= 11).all()
    mass = np.exp(np.nan_to_num(found["logprobs"].astype(float), nan=-np.inf)).sum(axis=1)
    assert np.allclose(mass + np.exp(found["tail"].astype(float)), 1, atol=5e-3)


def test_places_without_tokens_are_left_out_of_the_divergence() -> None:
    own = torch.log_softmax(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), -1)
    ids, logprobs = torch.tensor([[0, 1]]), torch.tensor([[0.7, 0.2]]).log()
    padded_ids = torch.tensor([[0, 1, 0]])
    padded = torch.cat([logprobs, torch.tensor([[math.nan]])], 1)
    tail = torch.tensor([0.1]).log()
    for temperature in (1.0, 2.0):
        whole = topk_divergence(own, ids, logprobs, tail, temperature=temperature)
        assert torch.allclose(topk_divergence(own, padded_ids, padded, tail, temperature=temperature), whole)


def test_an_endpoint_without_distributions_is_an_error_before_it_is_paid_for_much(
    teacher: Teacher, student_base: Path, tmp_path: Path
) -> None:
    config = config_for(teacher, tmp_path, [{"prompt": "x"}], topk_logprobs=4, student=student_base)
    with pytest.raises(EndpointError, match="no top_logprobs"):
        run(config)


def test_a_teacher_with_another_tokenizer_is_refused_by_its_token(
    teacher: Teacher, knowing: Knowing, student_base: Path, tmp_path: Path
) -> None:
    knowing.names = lambda token_id: {"token": f"⁂{token_id}"}
    with pytest.raises(TrainingError, match="do not share a tokenizer"):
        label(teacher, knowing, tmp_path, student_base)
    assert (tmp_path / "labels.jsonl").is_file()
    assert not (tmp_path / "labels.scores").exists()


def test_a_name_that_two_tokens_share_is_refused_unless_an_id_is_given(student_base: Path) -> None:
    tokenizer = load_tokenizer(student_base)
    taken = tokenizer.convert_tokens_to_ids("A")
    tokenizer.add_tokens(["\u0120"])  # as added text it is itself; as byte-level text it is a space
    names = TokenNames(tokenizer, "base")
    assert names.id_of(NamedToken(b"A", None)) == taken
    assert names.id_of(NamedToken(None, None)) is None
    assert names.id_of(NamedToken(None, len(tokenizer) + 3)) is None
    with pytest.raises(TrainingError, match="no token of its tokenizer"):
        names.id_of(NamedToken("⁂".encode(), None))
    with pytest.raises(TrainingError, match="share a tokenizer"):
        names.id_of(NamedToken(b"B", taken))


def test_sentencepiece_names_tell_a_word_from_its_end_and_a_byte_from_its_text() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<0x41>": 1, "<0x0A>": 2, "\u2581the": 3, "the": 4, "A": 5}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    names = TokenNames(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"), "base")
    found = [names.id_of(NamedToken(raw, None)) for raw in (b" the", b"the", b"A", b"\n")]
    assert found == [3, 4, 5, 2]
    twice = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    twice.add_tokens([" the"])
    with pytest.raises(TrainingError, match="may be any of"):
        TokenNames(twice, "base").id_of(NamedToken(b" the", None))


def test_the_two_settings_are_given_together(teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="together"):
        config_for(teacher, tmp_path, [], topk_logprobs=4)
