"""From dataset rows to a labeling job's requests; the same row gives the same request wherever it stands."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from decant.answers import AnswersConfig, Reading, read_response, whole_response
from decant.dataset import BadRow, Row, read_rows
from decant.errors import DataError
from decant.store import Answer, NewLabel
from decant.task import Message, TaskConfig
from decant.wire import TokenLogprob, Usage, canonical_json, request_key

_SEEDS = 2**31
GOLD_FIELD = "{gold}"

Redactor = Callable[[list[Message], str | None], tuple[list[Message], str | None, dict[str, int] | None]]
"""Takes what is private out of the messages and the true answer; says how many of each kind it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Who is asked; `revision` tells checkpoints of one name apart, None where the endpoint does not say."""

    model: str
    revision: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the teacher draws its answers: `samples` for each row, up to `max_samples` while unsure."""

    samples: int
    temperature: float
    top_p: float | None
    seed: int | None
    max_samples: int | None = None
    confidence: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One row that can be asked, and what it says beside its prompt; `redacted` counts what was taken out."""

    row_id: str
    line: int
    messages: list[Message]
    gold: str | None
    group: Any
    length: Any
    redacted: dict[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One sample of one row: a request. A hinted one shows gold to the teacher and asks why."""

    question: Question
    sample: int
    key: str
    request: dict[str, Any]
    hinted: bool = False

    def to_store(self, teacher: Teacher, prompt_version: str) -> NewLabel:
        """The store's row for this request."""
        return NewLabel(
            key=self.key,
            row_id=self.question.row_id,
            sample=self.sample,
            request=self.request,
            prompt_version=prompt_version,
            teacher=teacher.model,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unaskable:
    """A row that gives no request."""

    row_id: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to ask of whom. Iterating it reads the dataset anew, so that no job holds all of its rows."""

    data: Path
    task: TaskConfig
    teacher: Teacher
    sampling: Sampling
    limit: int | None
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    redact: Redactor | None = None
    hint: str | None = None
    logprobs: bool = False
    top_logprobs: int | None = None

    def __iter__(self) -> Iterator[Question | Unaskable]:
        for row in read_limited(self.data, self.limit):
            yield self._question(row)

    @property
    def prompt_version(self) -> str:
        """Names the template that the requests were made with."""
        template = [self.task.system, self.task.prompt, self.task.max_tokens]
        if (named := self.template) is not None:
            template.append(named)
        return hashlib.sha256(canonical_json(template)).hexdigest()[:12]

    @property
    def template(self) -> str | None:
        """The Jinja template's name and the hash of its text, where there is one."""
        template = self.task.prompt_template()
        return f"{template.name}@{template.version}" if template is not None else None

    @property
    def grows(self) -> bool:
        """Whether answers may call for further requests."""
        return self.sampling.max_samples is not None or self.hint is not None

    def ask(self, question: Question, sample: int, *, hinted: bool = False) -> Ask:
        """The request for one sample of a row; a hinted one needs its gold."""
        messages = self._hinted(question) if hinted else question.messages
        request: dict[str, Any] = {
            "model": self.teacher.model,
            "messages": messages,
            "max_tokens": self.task.max_tokens,
            "temperature": self.sampling.temperature,
            **self.answers.request_fields(),
        }
        if self.logprobs or self.top_logprobs:
            request["logprobs"] = True
        if self.top_logprobs:
            request["top_logprobs"] = self.top_logprobs
        if self.sampling.top_p is not None:
            request["top_p"] = self.sampling.top_p
        if self.sampling.seed is not None:
            request["seed"] = request_seed(self.sampling.seed, messages, sample)
        key = request_key(
            model=self.teacher.model, revision=self.teacher.revision, request=request, sample_index=sample
        )
        return Ask(question=question, sample=sample, key=key, request=request, hinted=hinted)

    def _hinted(self, question: Question) -> list[Message]:
        assert self.hint is not None
        assert question.gold is not None
        *before, last = question.messages
        hint = self.hint.replace(GOLD_FIELD, question.gold)
        return [*before, {**last, "content": f"{last['content']}\n\n{hint}"}]

    def read(self, response: str, finish_reason: str | None) -> Reading:
        """What an answer says, by the form that the job asks for."""
        return read_response(response, finish_reason, self.task, self.answers)

    def answer(
        self,
        text: str,
        reasoning: str | None,
        *,
        finish_reason: str | None,
        usage: Usage | None,
        cost_usd: float | None,
        latency_s: float | None = None,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> Answer:
        """What the store keeps of an answer."""
        response = whole_response(text, reasoning)
        reading = self.read(response, finish_reason)
        return Answer(
            response=response,
            reasoning=reading.reasoning,
            answer=reading.answer,
            finish_reason=finish_reason,
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            cost_usd=cost_usd,
            latency_s=latency_s,
            logprob=answer_logprob(logprobs, reading.answer),
        )

    def _question(self, row: Row | BadRow) -> Question | Unaskable:
        if isinstance(row, BadRow):
            return Unaskable(
                row_id=f"line-{row.line}", line=row.line, reason=f"line {row.line}: {row.reason}"
            )
        row_id = self.task.row_id(row.fields, row.line)
        gold, redacted = self.task.gold(row.fields), None
        try:
            messages = self.task.messages(row.fields)
            _check_unicode(row)
        except DataError as error:
            return Unaskable(row_id=row_id, line=row.line, reason=f"line {row.line}: {error}")
        if self.redact is not None:
            messages, gold, redacted = self.redact(messages, gold)
        return Question(
            row_id=row_id,
            line=row.line,
            messages=messages,
            gold=gold,
            group=row.fields.get(self.task.group_field),
            length=row.fields.get(self.task.length_field),
            redacted=redacted,
        )


def _check_unicode(row: Row) -> None:
    # JSON can spell half a surrogate pair, which no UTF-8 file, request or database can hold.
    if all(isinstance(value, str) and value.isascii() for value in row.fields.values()):
        return
    try:
        json.dumps(row.fields, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError("its text holds half a surrogate pair, which is no character") from None


def request_seed(seed: int, messages: list[Message], sample: int) -> int:
    """The seed of one sample: a function of what is asked, not of where the row stands in its file.

    So a shuffled or extended dataset pays for nothing twice, and equal rows share one request.
    """
    return int.from_bytes(hashlib.sha256(canonical_json([seed, messages, sample])).digest()[:8]) % _SEEDS


def read_limited(data: Path, limit: int | None) -> Iterator[Row | BadRow]:
    """The first `limit` rows of a dataset, bad ones included."""
    return islice(read_rows(data), limit)


def answer_logprob(tokens: Sequence[TokenLogprob] | None, answer: str | None) -> float | None:
    """The mean log-probability of the answer's own tokens, where it last stands; None where it does not.

    The reasoning is left out: its length and wording say little about whether the answer is right.
    """
    if not tokens or not answer:
        return None
    start = "".join(token.token for token in tokens).rfind(answer)
    if start < 0:
        return None
    reached, found = 0, list[float]()
    for token in tokens:
        before, reached = reached, reached + len(token.token)
        if before < start + len(answer) and reached > start:
            found.append(token.logprob)
    return sum(found) / len(found) if found else None
