"""From an endpoint's `top_logprobs` to the shards that training reads, in the student's own token ids.

Where the endpoint says nothing of a token (the end token, all behind the first that the student's tokenizer
cuts otherwise) the label itself is stored, all but certain: the divergence from it is plain cross-entropy.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decant.errors import MissingExtraError, TrainingError
from decant.files import folder_aside, write_text
from decant.store import RequestStore
from decant.task import TaskConfig, compose
from decant_distill.label_requests import Teacher
from decant_distill.label_topk import Place, read_places
from decant_distill.labels import Label
from decant_distill.train.encode import Example, encode
from decant_distill.train.rows import Lesson
from decant_distill.train.student import is_encoder_decoder, load_tokenizer
from decant_distill.train.teacher_scores import (
    TEACHER_FILE,
    ScoresInfo,
    conversation_key,
    save_shard,
    tokenizer_sha256,
)
from decant_distill.train.token_bytes import TokenNames

_ROWS_PER_SHARD = 1024
# With less of the tokens scored, the teacher's words are hardly cut as the student's are.
_LEAST_SHARE = 0.5
# Probabilities written in decimals that should add up to at most 1 miss it by less than this.
_MOST_MASS = 1.01
_LEAST_TAIL = 1e-6


@dataclass(frozen=True, slots=True)
class EndpointScores:
    """What was stored: where, for how many conversations, and for how many of their tokens."""

    folder: Path
    rows: int
    tokens: int
    scored: int
    bytes_per_token: float

    def describe(self) -> str:
        """One line."""
        return (
            f"{self.folder}: {self.rows} rows, {self.tokens:,} tokens, {self.scored / self.tokens:.1%} with"
            f" the teacher's scores, {self.bytes_per_token:.1f} bytes a token"
        )


@dataclass(frozen=True, slots=True)
class ScoresWriter:
    """Writes the scores of a job's labels for one student; made before anything is paid for."""

    tokenizer: Any
    student: Path
    task: TaskConfig
    k: int

    @classmethod
    def of(cls, student: Path, task: TaskConfig, *, k: int) -> "ScoresWriter":
        """TrainingError or ArtifactError when labels could not be rendered for this student."""
        import importlib.util

        if importlib.util.find_spec("transformers") is None:
            raise MissingExtraError("transformers", "train")
        writer = cls(load_tokenizer(student), student, task, k)
        if k > len(writer.tokenizer):
            raise TrainingError(f"topk_logprobs = {k} is more than the tokens of {student}")
        writer._encoded([Lesson(0, ({"role": "user", "content": "?"},), writer._completion("So.", "1"))])
        return writer

    def write(
        self, rows: Iterable[list[Label]], store: RequestStore, output: Path, *, teacher: Teacher
    ) -> EndpointScores:
        """Writes the folder; TrainingError when the teacher's tokens are not the student's."""
        info, names = self._info(teacher), TokenNames(self.tokenizer, str(self.student))
        tokens = scored = count = 0
        with folder_aside(output) as folder:
            for number, part in enumerate(_parts(_once(self._taught(rows)))):
                answers = [(label.key, label.response) for _, label in part if label.key and label.response]
                known = read_places(store, answers)
                examples = self._encoded([lesson for lesson, _ in part])
                records: list[NDArray[np.void]] = []
                for (_, label), example in zip(part, examples, strict=True):
                    found, told = records_of(example, known.get(label.key or "", ()), info=info, names=names)
                    records.append(found)
                    tokens, scored = tokens + len(found), scored + told
                keys = [conversation_key(lesson) for lesson, _ in part]
                save_shard(folder, number, keys=keys, records=records)
                count += len(part)
            if scored < _LEAST_SHARE * tokens or not tokens:
                raise TrainingError(
                    f"{output}: the endpoint scored {scored} of the {tokens} tokens that {self.student} would"
                    " be taught; its tokenizer, or the form of its answers, is another (the labels are kept)"
                )
            size_bytes = sum(path.stat().st_size for path in folder.glob("*.npy"))
            final = info.model_copy(update={"tokens": tokens, "bytes_per_token": size_bytes / tokens})
            write_text(folder / TEACHER_FILE, final.model_dump_json(indent=1) + "\n")
        return EndpointScores(output, count, tokens, scored, final.bytes_per_token)

    def _info(self, teacher: Teacher) -> ScoresInfo:
        return ScoresInfo(
            kind="topk",
            k=self.k,
            vocabulary=len(self.tokenizer),
            tokenizer_sha256=tokenizer_sha256(self.tokenizer),
            template_sha256=hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest(),
            teacher=teacher.model,
            teacher_sha256=teacher.revision or "",
            data_sha256="",
            settings={"source": "top_logprobs", "student": str(self.student)},
        )

    def _taught(self, rows: Iterable[list[Label]]) -> Iterator[tuple[Lesson, Label]]:
        """The labels that training may see, as it sees them. Hinted ones were scored on another prompt."""
        for label in chain.from_iterable(rows):
            if label.status == "done" and label.answer and label.prompt and not label.hinted:
                completion = self._completion(label.reasoning, label.answer)
                yield Lesson(label.line, tuple(label.prompt), completion), label

    def _completion(self, reasoning: str | None, answer: str) -> str:
        return compose(reasoning, answer, marker=self.task.answer_marker, placement="rationale_then_answer")

    def _encoded(self, lessons: Sequence[Lesson]) -> list[Example]:
        two_sides = is_encoder_decoder(self.student)
        return encode(self.tokenizer, lessons, base=str(self.student), two_sides=two_sides)


def records_of(
    example: Example, places: Sequence[Place], *, info: ScoresInfo, names: TokenNames
) -> tuple[NDArray[np.void], int]:
    """The records of a completion's tokens, and how many of them are the teacher's own distributions."""
    wanted = example.ids[example.prompt_tokens :]
    records = np.zeros(len(wanted), dtype=info.record())
    records["token"] = wanted
    records["ids"][:, 0] = wanted
    records["logprobs"] = np.nan
    records["logprobs"][:, 0] = 0.0
    records["tail"] = math.log(_LEAST_TAIL)
    for number, (token_id, place) in enumerate(zip(wanted, places, strict=False)):
        # Behind another token, what the teacher says is about another text.
        if names.id_of(place.token) != token_id:
            return records, number
        top = _ranked(place, names)[: info.k]
        mass = sum(math.exp(logprob) for logprob, _ in top)
        if mass > _MOST_MASS:
            raise TrainingError(
                f"{info.teacher}: the probabilities of one token add up to {mass:.2f}: its top_logprobs are"
                " no log probabilities"
            )
        records["ids"][number] = 0
        records["ids"][number, : len(top)] = [token_id for _, token_id in top]
        records["logprobs"][number] = np.nan
        records["logprobs"][number, : len(top)] = [max(logprob, -1e4) for logprob, _ in top]
        records["tail"][number] = math.log(max(1.0 - mass, _LEAST_TAIL))
    return records, min(len(wanted), len(places))


def _ranked(place: Place, names: TokenNames) -> list[tuple[float, int]]:
    """The likeliest first, each token once; what no token of the tokenizer is counts among all others."""
    by_id: dict[int, float] = {}
    for named, logprob in place.top:
        token_id = names.id_of(named)
        if token_id is not None:
            by_id.setdefault(token_id, logprob)
    return sorted(((logprob, token_id) for token_id, logprob in by_id.items()), reverse=True)


def _once(pairs: Iterable[tuple[Lesson, Label]]) -> Iterator[tuple[Lesson, Label]]:
    """Each conversation once: a teacher that says the same twice gave one distribution."""
    seen: set[bytes] = set()
    for lesson, label in pairs:
        key = conversation_key(lesson)
        if key not in seen:
            seen.add(key)
            yield lesson, label


def _parts(pairs: Iterator[tuple[Lesson, Label]]) -> Iterator[list[tuple[Lesson, Label]]]:
    while part := list(islice(pairs, _ROWS_PER_SHARD)):
        yield part
