"""`decant logits`: a teacher scores labels token by token, once, so that no training ever has to hold it.

The teacher is given each conversation as the student will be (teacher forcing) and leaves, for every token
of the completion, its most likely tokens or random samples. Killed, it goes on after the last whole shard.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from decant.config import Config, InputPath, OutputPath
from decant.errors import TrainingError
from decant.files import folder_aside, sha256_file, sha256_path, write_text
from decant.progress import Progress
from decant.task import TaskConfig
from decant_distill.train.config import RATIONALE_PREFIX, Method
from decant_distill.train.dev_scores import length_batches, on_device
from decant_distill.train.encode import Example, encode
from decant_distill.train.failures import explained
from decant_distill.train.objective import Objective, completion_logits
from decant_distill.train.rows import Lesson, Teaching, Weighing, read_lessons
from decant_distill.train.student import (
    decoder_start,
    is_encoder_decoder,
    load_base,
    load_tokenizer,
    require_training_stack,
)
from decant_distill.train.teacher_scores import (
    TEACHER_FILE,
    ScoreKind,
    ScoresInfo,
    conversation_key,
    save_shard,
    tokenizer_sha256,
)

if TYPE_CHECKING:
    from torch import Tensor

_ROWS_PER_SHARD = 1024


class LogitsConfig(Config):
    """A teacher, the labels it scores, and what is kept of its distributions."""

    positional: ClassVar[tuple[str, ...]] = ("data",)

    data: InputPath = Field(description="curated rows, JSONL with prompt, answer and reasoning")
    teacher: InputPath = Field(description="Hugging Face folder of the teacher, with the student's tokenizer")
    output: OutputPath = Field(description="folder for the scores")
    kind: ScoreKind = Field(
        default="topk", description="the k most likely tokens, or k random samples of all of them"
    )
    k: int = Field(default=16, ge=1, le=1024, description="tokens kept, or samples drawn, at each place")
    proposal_temperature: float = Field(
        default=1.0, gt=0, description="temperature at which samples are drawn; weights make up for it"
    )
    placement: Teaching = Field(default="rationale_then_answer", description="as in training")
    learn_from: Literal["labels", "gold"] = Field(default="labels", description="as in training")
    rationale_prefix: str = Field(default=RATIONALE_PREFIX, description="as in training, for multitask")
    method: Method = Field(
        default="lora", description="qlora loads the teacher in NF4, all others as dtype says"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="type of the teacher's weights and products"
    )
    batch_tokens: int = Field(default=8192, ge=1, description="most tokens at once, padding included")
    seed: int = Field(default=0, ge=0, description="of the samples")
    threads: int | None = Field(default=None, ge=1, description="CPU threads, torch's choice if not set")
    task: TaskConfig = Field(default_factory=TaskConfig, description="how answers are marked")

    def settings(self) -> dict[str, Any]:
        """What decides the scores, beside teacher and data."""
        without = {
            "data",
            "teacher",
            "output",
            "kind",
            "k",
            "threads",
            "batch_tokens",
            "proposal_temperature",
        }
        return self.model_dump(mode="json", exclude=without)


CONFIG = LogitsConfig


def run(config: LogitsConfig) -> None:
    """Scores every row; TrainingError when the teacher's tokenizer or template cannot be trusted."""
    require_training_stack(quantized=config.method == "qlora")
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tokenizer = load_tokenizer(config.teacher)
    lessons = read_lessons(
        config.data,
        task=config.task,
        placement=config.placement,
        gold=config.learn_from == "gold",
        weighing=Weighing(rationale_prefix=config.rationale_prefix),
    ).kept
    two_sides = is_encoder_decoder(config.teacher)
    examples = encode(tokenizer, lessons, base=str(config.teacher), two_sides=two_sides)
    info = _info(config, tokenizer)
    partial = _claimed(config.output, info)
    with explained(config.output.absolute().parent):
        scorer = _Scorer(
            load_base(config.teacher, dtype=config.dtype, nf4=config.method == "qlora").eval(),
            Objective(decoder_start=decoder_start(config.teacher)),
            info,
            batch_tokens=config.batch_tokens,
            seed=config.seed,
        )
        _write_shards(partial, scorer, lessons, examples)
        info = _publish(partial, config.output, info)
    print(
        f"{config.output}: {len(lessons)} rows, {info.tokens:,} tokens,"
        f" {info.bytes_per_token:.1f} bytes a token ({info.kind}, k = {info.k})"
    )


def _info(config: LogitsConfig, tokenizer: Any) -> ScoresInfo:
    import hashlib

    vocabulary = len(tokenizer)
    if config.kind == "topk" and config.k > vocabulary:
        raise TrainingError(f"k = {config.k} is more than the {vocabulary} tokens of {config.teacher}")
    return ScoresInfo(
        kind=config.kind,
        k=config.k,
        vocabulary=vocabulary,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        template_sha256=hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
        teacher=str(config.teacher),
        teacher_sha256=sha256_path(config.teacher),
        data_sha256=sha256_file(config.data),
        settings=config.settings(),
        proposal_temperature=config.proposal_temperature if config.kind == "sampled" else 1.0,
    )


def _claimed(output: Path, info: ScoresInfo) -> Path:
    """The folder beside the output where shards gather; one of another job's is refused."""
    folder = output.parent / f"{output.name}.partial"
    claim = folder / TEACHER_FILE
    text = info.model_dump_json(indent=1) + "\n"
    if claim.is_file() and claim.read_text() != text:
        raise TrainingError(
            f"{folder}: holds the shards of a job with another teacher, data or settings;"
            " restore them to go on with it, or delete the folder to start over"
        )
    write_text(claim, text)
    return folder


@dataclass(frozen=True, slots=True)
class _Scorer:
    """A teacher in memory, and what is kept of what it says."""

    model: Any
    objective: Objective
    info: ScoresInfo
    batch_tokens: int
    seed: int

    def score(self, examples: Sequence[Example], *, shard: int) -> list[NDArray[np.void]]:
        """The records of each example's completion, in the examples' order."""
        import torch

        generator = torch.Generator(device=self.model.device).manual_seed(self.seed * 1_000_003 + shard)
        found: dict[int, NDArray[np.void]] = {}
        lengths = [len(example.ids) for example in examples]
        for chosen in length_batches(lengths, most_tokens=self.batch_tokens):
            batch = self.objective.batch([examples[i] for i in chosen])
            labels = batch.pop("labels")
            given = {name: on_device(value, self.model.device) for name, value in batch.items()}
            with torch.inference_mode():
                logits = completion_logits(self.model(**given).logits, labels.to(self.model.device))
                records = self._records(logits[:, : self.info.vocabulary].float(), generator)
            counts = [len(examples[i].ids) - examples[i].prompt_tokens for i in chosen]
            for i, part in zip(chosen, np.split(records, np.cumsum(counts)[:-1]), strict=True):
                part["token"] = examples[i].ids[examples[i].prompt_tokens :]
                found[i] = part
        return [found[i] for i in range(len(examples))]

    def _records(self, logits_NV: "Tensor", generator: Any) -> NDArray[np.void]:
        records = np.zeros(len(logits_NV), dtype=self.info.record())
        if self.info.kind == "topk":
            ids, logprobs, tail = most_likely(logits_NV, k=self.info.k)
            records["logprobs"] = logprobs.cpu().numpy()
            records["tail"] = tail.cpu().numpy()
        else:
            ids, weights = sampled(
                logits_NV, k=self.info.k, temperature=self.info.proposal_temperature, generator=generator
            )
            records["weights"] = weights.cpu().numpy()
        records["ids"] = ids.cpu().numpy()
        return records


def most_likely(logits_NV: "Tensor", *, k: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Ids and log probabilities [tokens, k] of the k likeliest, and the log probability of all others."""
    import torch

    best = torch.log_softmax(logits_NV, dim=-1).topk(k, dim=-1)
    others = logits_NV.scatter(1, best.indices, -torch.inf)
    tail = torch.logsumexp(others, dim=-1) - torch.logsumexp(logits_NV, dim=-1)
    return best.indices, best.values, tail


def sampled(logits_NV: "Tensor", *, k: int, temperature: float, generator: Any) -> "tuple[Tensor, Tensor]":
    """k draws at a temperature as ids and weights [tokens, k]; a token's weights add up to its probability in
    expectation.

    Draws are spaced evenly over the cumulative distribution from one random start: each place is still drawn
    with its own probability, and estimates scatter less than those of independent draws.
    """
    import torch

    log_p = torch.log_softmax(logits_NV, dim=-1)
    log_q = torch.log_softmax(logits_NV / temperature, dim=-1)
    cumulative = log_q.double().exp().cumsum(dim=-1)
    start = torch.rand((len(logits_NV), 1), generator=generator, device=logits_NV.device, dtype=torch.float64)
    steps = torch.arange(k, device=logits_NV.device, dtype=torch.float64)
    points = (steps + start) / k * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, points, right=True).clamp(max=logits_NV.shape[1] - 1)
    return ids, (log_p - log_q).gather(1, ids).exp() / k


def _write_shards(
    folder: Path, scorer: _Scorer, lessons: Sequence[Lesson], examples: Sequence[Example]
) -> None:
    starts = range(0, len(lessons), _ROWS_PER_SHARD)
    with Progress(len(lessons), unit="rows", label="logits") as progress:
        for number, start in enumerate(starts):
            part = slice(start, start + _ROWS_PER_SHARD)
            if not (folder / f"index-{number:05d}.npy").is_file():
                save_shard(
                    folder,
                    number,
                    keys=[conversation_key(lesson) for lesson in lessons[part]],
                    records=scorer.score(examples[part], shard=number),
                )
            progress.advance(len(lessons[part]))


def _publish(partial: Path, output: Path, info: ScoresInfo) -> ScoresInfo:
    """Counts what was written and puts it in the output's place."""
    shards = sorted(partial.glob("shard-*.npy"))
    tokens = sum(len(np.load(path, mmap_mode="r", allow_pickle=False)) for path in shards)
    size_bytes = sum(path.stat().st_size for path in partial.glob("*.npy"))
    final = info.model_copy(update={"tokens": tokens, "bytes_per_token": size_bytes / tokens})
    with folder_aside(output) as folder:
        for path in partial.glob("*.npy"):
            shutil.copyfile(path, folder / path.name)
        write_text(folder / TEACHER_FILE, final.model_dump_json(indent=1) + "\n")
    shutil.rmtree(partial)
    return final
