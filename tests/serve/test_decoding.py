"""The transformers engine's decoding: batches that change nothing, sampling, and text as it comes."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from decant_serve.engines.hf.loading import LoadedModel, load
from decant_serve.engines.hf.sampling import Sampling, choose, score
from decant_serve.engines.hf.scheduler import Broken, Job, Piece, Scheduler
from decant_serve.engines.hf.text import TextStream
from decant_serve.engines.transformers import ModelSettings

GREEDY = Sampling(0.0, 1.0, None, 20, (), None)


def settings(folder: Path) -> ModelSettings:
    return ModelSettings(str(folder), None, None, False, "tiny", "/unused", 1, 512, 4)


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    return load(settings(tiny_folder))


@pytest.fixture
def scheduler(loaded: LoadedModel) -> Iterator[Scheduler]:
    running = Scheduler(loaded, parallel=3)
    running.start()
    yield running
    running.stop()


async def pieces(scheduler: Scheduler, job: Job) -> list[Piece]:
    """Everything a job of one choice is given."""
    scheduler.submit(job)
    got: list[Piece] = []
    while not got or got[-1].finish is None:
        for piece in await job.next_pieces():
            assert not isinstance(piece, Broken), piece
            got.append(piece)
    return got


async def tokens(
    scheduler: Scheduler, prompt: list[int], sampling: Sampling, *, delay_s: float = 0.0
) -> list[Any]:
    await asyncio.sleep(delay_s)
    return [piece.token_id for piece in await pieces(scheduler, Job(prompt, sampling))]


def prompts(count: int) -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(5, 290) for _ in range(generator.randrange(1, 30))] for _ in range(count)]


def generated(loaded: LoadedModel, prompt: list[int]) -> list[int | None]:
    """transformers' own greedy answer, its end token as None."""
    whole = loaded.model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0]
    return [None if token in loaded.end_ids else token for token in whole[len(prompt) :].tolist()]


async def test_rows_that_join_and_leave_answer_as_transformers_does_alone(
    loaded: LoadedModel, scheduler: Scheduler
) -> None:
    asked = prompts(9)
    runs = (tokens(scheduler, prompt, GREEDY, delay_s=0.004 * n) for n, prompt in enumerate(asked))
    assert await asyncio.gather(*runs) == [generated(loaded, prompt) for prompt in asked]


async def test_models_with_a_sliding_window_are_batched_too(tiny_model: Any, tmp_path: Path) -> None:
    config = transformers.MistralConfig.from_dict(
        {**tiny_model.model.config.to_dict(), "model_type": "mistral", "sliding_window": 8, "head_dim": 32}
    )
    torch.manual_seed(0)
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path)
    tiny_model.tokenizer.save_pretrained(tmp_path)
    mistral = load(settings(tmp_path))
    scheduler = Scheduler(mistral, parallel=3)
    scheduler.start()
    asked = prompts(5)
    answers = await asyncio.gather(*(tokens(scheduler, prompt, GREEDY) for prompt in asked))
    scheduler.stop()
    assert answers == [generated(mistral, prompt) for prompt in asked]


async def test_a_seed_gives_the_same_answer_in_any_batch(scheduler: Scheduler) -> None:
    drawn = Sampling(1.0, 0.9, 7, 15, (), None)
    alone = await tokens(scheduler, [9, 8, 7], drawn)
    crowd = (tokens(scheduler, prompt, GREEDY) for prompt in prompts(5))
    assert (await asyncio.gather(tokens(scheduler, [9, 8, 7], drawn), *crowd))[0] == alone


async def test_a_cancelled_job_makes_room(scheduler: Scheduler) -> None:
    endless = [Job([5, 6], Sampling(1.0, 1.0, n, 450, (), None)) for n in range(3)]
    for job in endless:
        scheduler.submit(job)
        await job.next_pieces()
    for job in endless:
        job.is_cancelled = True
    assert len(await tokens(scheduler, [9, 8, 7], GREEDY)) <= 20


async def test_an_answer_ends_where_the_context_does(loaded: LoadedModel, scheduler: Scheduler) -> None:
    endless = Sampling(1.0, 1.0, 3, 10_000, (), None)
    got = await pieces(scheduler, Job([9] * 500, endless))
    assert got[-1].finish == "stop" or len(got) == loaded.context - 500


def test_top_p_keeps_the_nucleus_only() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(400, 1)
    randoms = [random.Random(n) for n in range(400)]
    drawn = choose(logits, [Sampling(1.0, 0.7, None, 1, (), None)] * 400, randoms)
    assert set(drawn) == {0, 1}
    assert 0.55 < drawn.count(0) / 400 < 0.70


def test_temperature_draws_by_probability_and_zero_is_greedy() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.7]])).repeat(601, 1)
    samplings = [Sampling(1.0, 1.0, None, 1, (), None)] * 600 + [GREEDY]
    drawn = choose(logits, samplings, [random.Random(n) for n in range(601)])
    assert drawn[-1] == 2
    assert [round(drawn[:600].count(token) / 600, 1) for token in range(3)] == [0.1, 0.2, 0.7]


def test_scores_are_log_probabilities_before_temperature() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]))
    asked = Sampling(5.0, 1.0, None, 1, (), 2)
    first, second = score(logits, [1, 0], [asked, GREEDY])
    assert second is None
    assert first is not None
    assert first.logprob == pytest.approx(-1.609, abs=1e-3)
    assert [token for token, _ in first.top] == [2, 1]


def shown(texts: list[bytes], *stops: str) -> tuple[list[str], bool]:
    """What a stream shows for tokens that are these bytes, and whether a stop string ended it."""
    stream = TextStream(lambda ids: b"".join(texts[n] for n in ids).decode("utf-8", "replace"), stops)
    parts = []
    for n in range(len(texts)):
        parts.append(stream.push(n))
        if stream.is_stopped:
            return parts, True
    return [*parts, stream.finish()], False


def test_half_characters_wait_for_their_other_half() -> None:
    smile = "🙂".encode()
    assert shown([b"a", smile[:2], smile[2:], b"b"]) == (["a", "", "🙂", "b", ""], False)


def test_a_half_character_at_the_end_is_shown_as_what_it_is() -> None:
    assert shown([b"a", b"\xf0\x9f"])[0] == ["a", "", "\ufffd"]


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    assert shown([b"one E", b"N", b"D two"], "END") == (["one ", "", ""], True)


def test_text_that_only_began_like_a_stop_string_is_shown_after_all() -> None:
    assert shown([b"one E", b"N", b"TER"], "END") == (["one ", "", "ENTER", ""], False)
    assert "".join(shown([b"one E", b"N"], "END")[0]) == "one EN"
