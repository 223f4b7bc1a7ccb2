"""A teacher's scores of a dataset's completions on disk: per token its k most likely tokens, or k samples.

A folder of shards, each a numpy array of one record per token (no pickle) with an index beside it, and
`teacher.json`, which says whose they are, with which tokenizer and template. Training maps them to memory.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from decant.errors import ArtifactError, TrainingError
from decant_distill.train.encode import Example
from decant_distill.train.rows import Lesson

TEACHER_FILE = "teacher.json"

ScoreKind = Literal["topk", "sampled"]

_INDEX = np.dtype([("key", "V16"), ("start", "<u8"), ("length", "<u4")])


class ScoresInfo(BaseModel):
    """What `teacher.json` holds. Token ids stay below `vocabulary`, the tokenizer's own size: rows that pad
    a model's output layer beyond it are left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    kind: ScoreKind
    k: int
    vocabulary: int
    tokenizer_sha256: str
    template_sha256: str
    teacher: str
    teacher_sha256: str
    data_sha256: str
    settings: dict[str, Any]
    proposal_temperature: float = 1.0
    tokens: int = 0
    bytes_per_token: float = 0.0

    def record(self) -> np.dtype[np.void]:
        """One token's record: its id, k ids, and 16-bit natural logarithms or weights."""
        ids = "<u2" if self.vocabulary <= 2**16 else "<u4"
        values: list[Any] = (
            [("logprobs", "<f2", (self.k,)), ("tail", "<f2")]
            if self.kind == "topk"
            else [("weights", "<f2", (self.k,))]
        )
        return np.dtype([("token", ids), ("ids", ids, (self.k,)), *values])


@dataclass(frozen=True, slots=True)
class TeacherScores:
    """The scores of every conversation that a teacher was given."""

    folder: Path
    info: ScoresInfo
    places: Mapping[bytes, tuple[int, int, int]]
    shards: Sequence[NDArray[np.void]]

    def attach(
        self, examples: Sequence[Example], lessons: Sequence[Lesson], *, tokenizer: Any, data: Path
    ) -> list[Example]:
        """The examples with their scores; TrainingError unless every token is the teacher's too."""
        if tokenizer_sha256(tokenizer) != self.info.tokenizer_sha256:
            raise TrainingError(
                f"{self.folder}: was made with another tokenizer than the student's; token scores only"
                f" carry over within a family that shares one (teacher: {self.info.teacher})"
            )
        scored: list[Example] = []
        for lesson, example in zip(lessons, examples, strict=True):
            place = self.places.get(conversation_key(lesson))
            if place is None:
                raise TrainingError(
                    f"{self.folder}: has no scores for line {lesson.line} of {data};"
                    " run decant logits on this file, with the same placement and task"
                )
            shard, start, length = place
            records = self.shards[shard][start : start + length]
            if not np.array_equal(records["token"], example.ids[example.prompt_tokens :]):
                raise TrainingError(
                    f"{self.folder}: the teacher's tokens of line {lesson.line} of {data} are not the"
                    " student's (another chat template or end token); score with the student's template"
                )
            scored.append(replace(example, teacher=records))
        return scored


def open_scores(folder: Path) -> TeacherScores:
    """The scores in a folder that `decant logits` wrote; ArtifactError when it is none, or not whole."""
    try:
        info = ScoresInfo.model_validate_json((folder / TEACHER_FILE).read_bytes())
        indices = [np.load(path, allow_pickle=False) for path in sorted(folder.glob("index-*.npy"))]
        shards = [
            np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("shard-*.npy"))
        ]
    except (OSError, ValueError, ValidationError) as error:
        first = str(error).partition("\n")[0]
        raise ArtifactError(f"{folder}: no teacher scores ({first}); make them with decant logits") from None
    stored = sum(len(shard) for shard in shards)
    if len(indices) != len(shards) or stored != info.tokens or any(s.dtype != info.record() for s in shards):
        raise ArtifactError(f"{folder}: a shard is missing or cut; run decant logits again")
    places = {
        entry["key"].tobytes(): (number, int(entry["start"]), int(entry["length"]))
        for number, index in enumerate(indices)
        for entry in index
    }
    return TeacherScores(folder=folder, info=info, places=places, shards=shards)


def save_shard(
    folder: Path, number: int, *, keys: Sequence[bytes], records: Sequence[NDArray[np.void]]
) -> None:
    """Writes one shard and, last, its index: a shard without an index is not there."""
    lengths = [len(record) for record in records]
    index = np.empty(len(keys), dtype=_INDEX)
    index["key"] = np.array(keys, dtype="V16")
    index["start"] = np.cumsum([0, *lengths[:-1]])
    index["length"] = lengths
    for name, array in (("shard", np.concatenate(records)), ("index", index)):
        aside = folder / f"{name}.aside"
        with aside.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        aside.replace(folder / f"{name}-{number:05d}.npy")


def conversation_key(lesson: Lesson) -> bytes:
    """Names a conversation by what was asked and what is to be said: 16 bytes."""
    text = json.dumps([lesson.prompt, lesson.completion], ensure_ascii=False)
    return hashlib.sha256(text.encode()).digest()[:16]


def tokenizer_sha256(tokenizer: Any) -> str:
    """A hash of what every token is, whatever files the tokenizer came in and however its model is padded."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
