"""Another model marks the labels: a mark is a feature of a label, cached and paid for like any answer."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from decant import store
from decant.config import Config, OptionalInputPath
from decant.endpoint import EndpointConfig, open_endpoint
from decant.files import write_jsonl
from decant.store import RequestStore
from decant.task import TaskConfig
from decant_distill.label_plan import asks_in, plan
from decant_distill.label_requests import Ask, Job, Question, Sampling, Teacher
from decant_distill.label_run import LabelRun, Ran
from decant_distill.label_spend import Prices
from decant_distill.labels import Label

_LOWEST, _HIGHEST = 1, 5
_MARK = re.compile(r"\W*([1-5])\b\W*(?:out of\W*)?(?:5\W*)?", re.ASCII)


class JudgeConfig(Config):
    """Who judges the labels, and how it is asked."""

    endpoint: EndpointConfig = Field(description="the judge; best another model than the teacher")
    template_file: OptionalInputPath = Field(
        default=None,
        description="Jinja template over question, reasoning and answer; it asks for a mark from 1 to 5",
    )
    least: float = Field(default=0.5, ge=0, le=1, description="mark from 0 to 1 at which the check passes")
    max_tokens: int = Field(default=256, ge=1, description="longest judgement, in tokens")
    concurrency: int = Field(default=8, ge=1, le=1024, description="most requests in flight at once")


@dataclass(frozen=True, slots=True)
class Judge:
    """Turns labels into the judge's requests, and its answers into marks from 0 to 1."""

    config: JudgeConfig
    job: Job

    @classmethod
    def of(cls, config: JudgeConfig, *, data: Path, teacher: Teacher, seed: int) -> "Judge":
        """The judge of the labels whose statements are written to `data`."""
        own = config.template_file
        task = TaskConfig(
            template=None if own else "judge", template_file=own, max_tokens=config.max_tokens, id_field="id"
        )
        sampling = Sampling(samples=1, temperature=0.0, top_p=None, seed=seed)
        return cls(config, Job(data=data, task=task, teacher=teacher, sampling=sampling, limit=None))

    def marks(self, labels: Sequence[Label], requests: RequestStore) -> dict[str, float]:
        """The marks of those labels that have one, by the label's key."""
        asks = {label.key: self._ask(label) for label in labels if label.answer is not None and label.key}
        known = requests.get_many(ask.key for ask in asks.values())
        found = {key: self._mark(known.get(ask.key)) for key, ask in asks.items()}
        return {key: mark for key, mark in found.items() if mark is not None}

    def _ask(self, label: Label) -> Ask:
        messages = self.job.task.messages(statement(label))
        question = Question(
            row_id=label.key or "", line=0, messages=messages, gold=None, group=None, length=None
        )
        return self.job.ask(question, 0)

    def _mark(self, stored: store.Label | None) -> float | None:
        if stored is None or stored.response is None:
            return None
        answer = self.job.read(stored.response, stored.finish_reason).answer or ""
        found = _MARK.fullmatch(answer)
        return (int(found[1]) - _LOWEST) / (_HIGHEST - _LOWEST) if found else None


def statement(label: Label) -> dict[str, Any]:
    """What the judge is shown of a label: never gold."""
    return {
        "id": label.key,
        "question": label.question,
        "reasoning": label.reasoning or "",
        "answer": label.answer,
    }


def statements(labels: Iterator[Label]) -> Iterator[dict[str, Any]]:
    """One row for each label that has an answer; equal ones are one request anyway."""
    return (statement(label) for label in labels if label.answer is not None)


@dataclass(frozen=True, slots=True)
class Judging:
    """The judge at work: its endpoint, its file of statements, and what it may still cost."""

    config: JudgeConfig
    data: Path
    log_dir: Path
    seed: int

    def paid_before_usd(self, requests: RequestStore) -> float:
        """What earlier runs paid the judge; its model is known only where the config names it."""
        if not self.data.exists() or self.config.endpoint.model is None:
            return 0.0
        teacher = Teacher(model=self.config.endpoint.model, revision=None)
        judge = Judge.of(self.config, data=self.data, teacher=teacher, seed=self.seed)
        return paid_usd(judge.job, requests)

    async def run(
        self,
        labels: Iterator[Label],
        requests: RequestStore,
        *,
        budget_usd: float | None,
        max_attempts: int,
    ) -> tuple[Judge, Ran]:
        """Has every label marked; StageError when the budget does not pay for it."""
        await asyncio.to_thread(write_jsonl, self.data, statements(labels))
        async with open_endpoint(self.config.endpoint, log_dir=self.log_dir) as endpoint:
            revision = endpoint.description.get("manifest_sha256")
            teacher = Teacher(model=endpoint.model, revision=revision)
            judge = Judge.of(self.config, data=self.data, teacher=teacher, seed=self.seed)
            judging = LabelRun(
                judge.job,
                requests,
                endpoint,
                prices=Prices.of(self.config.endpoint),
                budget_usd=budget_usd,
                concurrency=self.config.concurrency,
                max_attempts=max_attempts,
            )
            return judge, await judging.ask_all(timeout_s=self.config.endpoint.request_timeout_s)


def paid_usd(job: Job, requests: RequestStore) -> float:
    """What the answers of a job cost that are in the store, each counted once."""
    seen: set[bytes] = set()
    paid = 0.0
    for chunk in plan(job, requests.get_many):
        keys = {ask.key for ask in asks_in(chunk) if bytes.fromhex(ask.key) not in seen}
        seen.update(map(bytes.fromhex, keys))
        paid += sum(label.cost_usd or 0.0 for label in requests.get_many(keys).values())
    return paid


def summary_of(judge: Judge, ran: Ran, requests: RequestStore) -> dict[str, Any]:
    """What the judge did and cost, for the summary."""
    has_prices = Prices.of(judge.config.endpoint) is not None
    return {
        "model": judge.job.teacher.model,
        "requests": ran.requests,
        "reused": ran.reused,
        "cost_usd": paid_usd(judge.job, requests) if has_prices else None,
        "least": judge.config.least,
    }
