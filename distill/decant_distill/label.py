"""The label stage: a teacher answers a dataset, with its reasoning; a rerun pays for nothing twice."""

import asyncio
import time
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from decant.client import OpenAIClient
from decant.config import Config, InputPath, OutputPath
from decant.endpoint import Endpoint, EndpointConfig, open_endpoint
from decant.errors import DataError, EndpointError
from decant.files import write_json, write_jsonl
from decant.progress import Progress
from decant.store import RequestStore
from decant.task import TaskConfig
from decant_distill.label_job import Dispatcher, Registered, register
from decant_distill.label_output import Tally, read_back
from decant_distill.label_requests import Job, Sampling, Teacher, read_limited
from decant_distill.label_spend import Prices, Purse
from decant_distill.label_watch import Watch


class LabelConfig(Config):
    """What to label, who labels it, and what it may cost."""

    positional: ClassVar[tuple[str, ...]] = ("data",)

    data: InputPath = Field(description="dataset to label (JSONL)")
    output: OutputPath = Field(description="label file to write (JSONL); its summary stands beside it")
    store: Path | None = Field(default=None, description="request store; OUTPUT.store.sqlite when left out")
    endpoint: EndpointConfig = Field(description="the teacher")
    task: TaskConfig = Field(
        default=TaskConfig(), description="how a row becomes a request and an answer a label"
    )
    samples: int = Field(default=1, ge=1, description="answers to draw for each row")
    temperature: float = Field(
        default=0.0, ge=0, description="sampling temperature; more samples need more than 0"
    )
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="nucleus sampling; not sent when left out"
    )
    seed: int = Field(
        default=0, description="each request's own seed follows from it, its prompt and its sample"
    )
    concurrency: int = Field(default=8, ge=1, le=1024, description="requests in flight at once")
    limit: int | None = Field(default=None, ge=1, description="label only the first rows")
    max_attempts: int = Field(
        default=6, ge=1, description="tries of one request before its row counts as failed"
    )
    budget_usd: float | None = Field(
        default=None, gt=0, description="most that the whole job may cost, reruns included"
    )
    drop_gold: bool = Field(
        default=False, description="leave gold out of the labels, as if the data had none"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> "LabelConfig":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples above 1 are all alike at temperature 0; raise temperature")
        if self.budget_usd is not None and Prices.of(self.endpoint) is None:
            raise ValueError(
                "budget_usd needs the endpoint's prices (price_per_hour or usd_per_million_*_tokens)"
            )
        return self

    @property
    def store_path(self) -> Path:
        """Where the request store is."""
        return self.store or self.output.with_suffix(".store.sqlite")

    @property
    def summary_path(self) -> Path:
        """Where the summary goes."""
        return self.output.with_suffix(".summary.json")


CONFIG = LabelConfig


def run(config: LabelConfig) -> None:
    """Labels the dataset; an EndpointError or StageError leaves a job that the same command resumes."""
    if not any(True for _ in read_limited(config.data, 1)):
        raise DataError(f"{config.data}: the dataset has no rows")
    try:
        summary = asyncio.run(_label(config))
    except EndpointError as error:
        hint = f"what was answered is kept in {config.store_path}: run the same command again to go on"
        raise EndpointError(f"{error}; {hint}") from error
    print(_describe(summary, config))
    if not summary["done"]:
        why = ", ".join(f"{name} {count}" for name, count in summary["by_error"].items())
        raise DataError(f"{config.output}: no row got a label ({why}); see the field `error` there")


async def _label(config: LabelConfig) -> dict[str, Any]:
    log_dir = config.output.with_suffix(".serve")
    with RequestStore.open(config.store_path) as store:
        async with open_endpoint(config.endpoint, log_dir=log_dir) as endpoint:
            job = _job(config, endpoint)
            registered = await asyncio.to_thread(register, job, store)
            purse = Purse(
                Prices.of(config.endpoint), budget_usd=config.budget_usd, paid_usd=registered.paid_usd
            )
            started_s = time.perf_counter()
            if registered.reused < registered.requests:
                await _dispatch(config, endpoint, job=job, store=store, purse=purse, registered=registered)
            wall_s = time.perf_counter() - started_s
        return await asyncio.to_thread(
            _write, config, job, store, registered, wall_s=wall_s, unmetered=purse.unmetered
        )


def _job(config: LabelConfig, endpoint: Endpoint) -> Job:
    revision = endpoint.description.get("manifest_sha256")
    sampling = Sampling(
        samples=config.samples, temperature=config.temperature, top_p=config.top_p, seed=config.seed
    )
    teacher = Teacher(model=endpoint.model, revision=revision)
    return Job(data=config.data, task=config.task, teacher=teacher, sampling=sampling, limit=config.limit)


async def _dispatch(
    config: LabelConfig,
    endpoint: Endpoint,
    *,
    job: Job,
    store: RequestStore,
    purse: Purse,
    registered: Registered,
) -> None:
    client = OpenAIClient(
        endpoint.base_url,
        api_key=endpoint.api_key,
        timeout_s=config.endpoint.request_timeout_s,
        max_connections=config.concurrency,
        max_retries=config.max_attempts - 1,
    )
    watch = Watch(concurrency=config.concurrency)
    progress = Progress(registered.requests, unit="labels", label="label", start=registered.reused)
    async with client:
        with progress:
            dispatcher = Dispatcher(
                store=store, client=client, task=config.task, purse=purse, watch=watch, progress=progress
            )
            await dispatcher.run(job, concurrency=config.concurrency)


def _write(
    config: LabelConfig,
    job: Job,
    store: RequestStore,
    registered: Registered,
    *,
    wall_s: float,
    unmetered: int,
) -> dict[str, Any]:
    tally = Tally()
    write_jsonl(config.output, read_back(job, store, drop_gold=config.drop_gold, tally=tally))
    summary = {
        **tally.to_summary(),
        "requests": registered.requests,
        "reused": registered.reused,
        "unmetered": unmetered,
        # What killed runs took is not known; their answers took their latency, `concurrency` at a time.
        "wall_s": wall_s + registered.latency_s / config.concurrency,
        "run_s": wall_s,
        "teacher": {"model": job.teacher.model, "revision": job.teacher.revision},
        "samples": config.samples,
        "temperature": config.temperature,
    }
    write_json(config.summary_path, summary)
    return summary


def _describe(summary: dict[str, Any], config: LabelConfig) -> str:
    reasons = ", ".join(f"{name} {count}" for name, count in summary["by_error"].items())
    failed = f"; {summary['failed']} failed: {reasons}" if reasons else ""
    cost = f", ${summary['cost_usd']:.4g} in all" if summary["cost_usd"] is not None else ""
    return (
        f"{summary['done']} of {summary['rows']} labeled in {summary['run_s']:.1f} s, "
        f"{summary['reused']} reused{cost}{failed} -> {config.output}"
    )
