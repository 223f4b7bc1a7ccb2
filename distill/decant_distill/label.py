"""The label stage: a teacher answers a dataset, with its reasoning; a rerun pays for nothing twice."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from decant.answers import AnswersConfig
from decant.config import Config, InputPath, OptionalInputPath, OptionalOutputPath, OutputPath
from decant.endpoint import Endpoint, EndpointConfig, open_endpoint
from decant.errors import DataError, EndpointError
from decant.files import write_json, write_jsonl
from decant.store import RequestStore, store_name
from decant.task import TaskConfig
from decant_distill.batch_api import BatchApi
from decant_distill.calibration import Method
from decant_distill.label_batch import take_results, write_requests
from decant_distill.label_batch_api import BatchLabeling, BatchOptions
from decant_distill.label_calibrate import calibrate
from decant_distill.label_export import check_export, export
from decant_distill.label_hint import DEFAULT_HINT
from decant_distill.label_job import register
from decant_distill.label_judge import Judge, JudgeConfig, Judging, paid_usd, summary_of
from decant_distill.label_output import Reader, Tally
from decant_distill.label_ray import Orders, RayOptions, ask_by_ray, check_ray
from decant_distill.label_requests import GOLD_FIELD, Job, Sampling, Teacher, read_limited
from decant_distill.label_run import LabelRun, Ran
from decant_distill.label_spend import Prices
from decant_distill.redact import Redaction, RedactKind
from decant_distill.train.endpoint_scores import ScoresWriter
from decant_distill.verifiers import Verifier, VerifierConfig, load_verifiers

LabelFormat = Literal["online", "openai-batch", "batch-api"]


class LabelConfig(Config):
    """What to label, who labels it, and what it may cost."""

    positional: ClassVar[tuple[str, ...]] = ("data",)

    data: InputPath = Field(description="dataset to label (JSONL, CSV, TSV, Parquet, or a folder)")
    output: OutputPath = Field(description="label file to write (JSONL); its summary stands beside it")
    store: str | Path | None = Field(
        default=None,
        description="request store: a path or postgresql://USER@HOST/DB; OUTPUT.store.sqlite when left out",
    )
    endpoint: EndpointConfig = Field(description="the teacher")
    task: TaskConfig = Field(
        default=TaskConfig(), description="how a row becomes a request and an answer a label"
    )
    answers: AnswersConfig = Field(
        default=AnswersConfig(), description="where the answer stands in a response"
    )
    verify: tuple[VerifierConfig, ...] = Field(default=(), description="checks of every answer")
    redact: tuple[RedactKind, ...] = Field(
        default=(),
        description="email, secret, iban, national_id, card, ip, phone: taken out before a message is sent",
    )
    samples: int = Field(default=1, ge=1, description="answers to draw for each row")
    max_samples: int | None = Field(
        default=None, ge=2, description="draw more, up to so many, for a row whose samples do not agree"
    )
    confidence: float = Field(
        default=0.9, gt=0.5, lt=1, description="probability of the majority at which no more are drawn"
    )
    temperature: float = Field(
        default=0.0, ge=0, description="sampling temperature; more samples need more than 0"
    )
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="nucleus sampling; not sent when left out"
    )
    seed: int = Field(
        default=0, description="each request's own seed follows from it, its prompt and its sample"
    )
    concurrency: int = Field(default=8, ge=1, le=1024, description="most requests in flight at once")
    limit: int | None = Field(default=None, ge=1, description="label only the first rows")
    max_attempts: int = Field(
        default=6, ge=1, description="tries of one request before its row counts as failed"
    )
    budget_usd: float | None = Field(
        default=None, gt=0, description="most that the whole job may cost, reruns included"
    )
    estimate: int | None = Field(
        default=None,
        ge=1,
        description="only ask so many requests, chosen at random, and say what the rest will take",
    )
    format: LabelFormat = Field(
        default="online",
        description="ask the endpoint, go through its Batch API, or read and write files for one",
    )
    batch_size: int = Field(
        default=50_000, ge=1, le=50_000, description="for batch-api: most requests in one batch"
    )
    batch_poll_s: float = Field(
        default=30.0, gt=0, description="for batch-api: seconds between looks at a batch"
    )
    batch_results: OptionalInputPath = Field(
        default=None, description="for openai-batch: the provider's output file"
    )
    ray: str | None = Field(
        default=None, description="address of a Ray cluster whose workers ask, or local for one of its own"
    )
    ray_workers: int = Field(
        default=2, ge=1, description="for ray: workers, which share the concurrency between them"
    )
    export: OptionalOutputPath = Field(
        default=None, description="also write all that the store holds into this file (JSONL or .parquet)"
    )
    logprobs: bool = Field(
        default=False, description="ask for the answers' log-probabilities; not all endpoints give them"
    )
    topk_logprobs: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="store so many likeliest tokens of each place, for train's teacher_scores; needs student",
    )
    student: OptionalInputPath = Field(
        default=None, description="for topk_logprobs: the student, whose tokenizer the teacher shares"
    )
    hint: bool = Field(
        default=False, description="show gold to the teacher where all its samples miss it, and ask why"
    )
    hint_text: str = Field(default=DEFAULT_HINT, description="what it is told then, with {gold}")
    judge: JudgeConfig | None = Field(default=None, description="another model that marks each label")
    calibrate: Method | None = Field(
        default=None, description="turn votes, log-probability and mark into a probability, on rows with gold"
    )
    drop_gold: bool = Field(
        default=False, description="leave gold out of the labels, as if the data had none"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> "LabelConfig":
        if (self.samples > 1 or self.max_samples is not None) and self.temperature == 0:
            raise ValueError("samples above 1 are all alike at temperature 0; raise temperature")
        if self.max_samples is not None and self.max_samples <= self.samples:
            raise ValueError(f"max_samples must be more than samples, which is {self.samples}")
        if self.batch_results is not None and self.format != "openai-batch":
            raise ValueError("batch_results needs format = openai-batch")
        if self.drop_gold and (self.hint or self.calibrate):
            raise ValueError("hint and calibrate need gold, which drop_gold leaves out")
        if GOLD_FIELD not in self.hint_text:
            raise ValueError(f"hint_text must say {GOLD_FIELD}")
        if self.judge is not None and self.format != "online":
            raise ValueError("a judge is asked online; label with the batch first, then add the judge")
        if self.format != "online" and self.endpoint.model is None:
            raise ValueError(f"format = {self.format} needs the endpoint's base_url and model")
        if self.format != "online" and self.estimate is not None:
            raise ValueError("estimate asks the endpoint, so it needs format = online")
        if self.ray is not None and (self.format != "online" or self.estimate is not None):
            raise ValueError("ray asks the endpoint for all that is open: leave format and estimate out")
        return self

    @model_validator(mode="after")
    def _top_tokens_have_a_student(self) -> "LabelConfig":
        if (self.topk_logprobs is None) != (self.student is None):
            raise ValueError("topk_logprobs and student are given together, or neither")
        if self.topk_logprobs is not None and self.format != "online":
            raise ValueError("topk_logprobs needs format = online")
        return self

    @model_validator(mode="after")
    def _a_budget_has_prices(self) -> "LabelConfig":
        if self.budget_usd is not None and Prices.of(self.endpoint) is None:
            raise ValueError(
                "budget_usd needs the endpoint's prices (price_per_hour or usd_per_million_*_tokens)"
            )
        judge = self.judge
        if self.budget_usd is not None and judge is not None and Prices.of(judge.endpoint) is None:
            raise ValueError("budget_usd needs the prices of the judge's endpoint too")
        if self.ray is not None and self.budget_usd is not None and self.endpoint.price_per_hour:
            raise ValueError("with ray a budget needs prices per token: hours cannot be reserved beforehand")
        return self

    @property
    def store_path(self) -> str | Path:
        """Where the request store is: a path or a URL, which messages show through `store_name` alone."""
        return self.store or self.output.with_suffix(".store.sqlite")

    @property
    def summary_path(self) -> Path:
        """Where the summary goes."""
        return self.output.with_suffix(".summary.json")

    @property
    def scores_path(self) -> Path:
        """Where the teacher's top tokens go, in the form that `decant logits` writes."""
        return self.output.with_suffix(".scores")

    @property
    def batch_path(self) -> Path:
        """Where the requests of a batch go."""
        return self.output.with_suffix(".batch.jsonl")


CONFIG = LabelConfig


def run(config: LabelConfig) -> None:
    """Labels the dataset; an EndpointError or StageError leaves a job that the same command resumes."""
    config.task.prompt_fields()
    if config.ray is not None:
        check_ray(config.ray, config.store_path, served=config.endpoint.serve is not None)
    verifiers = load_verifiers(config.verify)
    if config.export is not None:
        check_export(config.export)
    _scores_writer(config)
    if not any(True for _ in read_limited(config.data, 1)):
        raise DataError(f"{config.data}: the dataset has no rows")
    try:
        summary = _summary_of(config, verifiers)
    except EndpointError as error:
        kept = f"what was answered is kept in {store_name(config.store_path)}"
        hint = f"{kept}: run the same command again to go on"
        raise EndpointError(f"{error}; {hint}") from error
    if summary is None:
        return
    print(_describe(summary, config))
    if not summary["done"]:
        why = ", ".join(f"{name} {count}" for name, count in summary["by_error"].items())
        raise DataError(f"{config.output}: no row got a label ({why}); see the field `error` there")


def _summary_of(config: LabelConfig, verifiers: Mapping[str, Verifier]) -> dict[str, Any] | None:
    """The summary of a job that ended; None where it has more to do."""
    if config.format == "openai-batch":
        return _label_batch(config, verifiers)
    if config.format == "batch-api":
        return asyncio.run(_label_by_batches(config, verifiers))
    return asyncio.run(_label(config, verifiers))


async def _label_by_batches(config: LabelConfig, verifiers: Mapping[str, Verifier]) -> dict[str, Any]:
    options = BatchOptions(
        size=config.batch_size,
        poll_s=config.batch_poll_s,
        prices=Prices.of(config.endpoint),
        budget_usd=config.budget_usd,
    )
    with RequestStore.open(config.store_path) as store:
        async with open_endpoint(config.endpoint, log_dir=config.output.with_suffix(".serve")) as endpoint:
            teacher = Teacher(model=endpoint.model, revision=endpoint.description.get("manifest_sha256"))
            job = _job(config, teacher)
            async with BatchApi(endpoint.base_url, api_key=endpoint.api_key) as api:
                ran = await BatchLabeling(job, store, endpoint, api, options).run()
        return await asyncio.to_thread(_write, config, job, store, ran, verifiers)


async def _label(config: LabelConfig, verifiers: Mapping[str, Verifier]) -> dict[str, Any] | None:
    log_dir = config.output.with_suffix(".serve")
    with RequestStore.open(config.store_path) as store:
        judging = _judging(config)
        judged_usd = judging.paid_before_usd(store) if judging is not None else 0.0
        async with open_endpoint(config.endpoint, log_dir=log_dir) as endpoint:
            teacher = Teacher(model=endpoint.model, revision=endpoint.description.get("manifest_sha256"))
            job = _job(config, teacher)
            budget_usd = None if config.budget_usd is None else config.budget_usd - judged_usd
            timeout_s = config.endpoint.request_timeout_s
            if config.ray is not None:
                ran = await ask_by_ray(_ray_orders(config, job, endpoint, budget_usd), store)
            else:
                label_run = LabelRun(
                    job,
                    store,
                    endpoint,
                    prices=Prices.of(config.endpoint),
                    budget_usd=budget_usd,
                    concurrency=config.concurrency,
                    max_attempts=config.max_attempts,
                )
                if config.estimate is not None:
                    print((await label_run.estimate(config.estimate, timeout_s=timeout_s)).describe())
                    return None
                ran = await label_run.ask_all(timeout_s=timeout_s)
        judged = None if judging is None else await _judge(config, judging, job, store)
        return await asyncio.to_thread(_write, config, job, store, ran, verifiers, judged=judged)


def _ray_orders(config: LabelConfig, job: Job, endpoint: Endpoint, budget_usd: float | None) -> Orders:
    assert config.ray is not None
    place = config.store_path
    options = RayOptions(
        address=config.ray,
        workers=config.ray_workers,
        concurrency=config.concurrency,
        max_attempts=config.max_attempts,
        timeout_s=config.endpoint.request_timeout_s,
        prices=Prices.of(config.endpoint),
        budget_usd=budget_usd,
    )
    # A worker's working directory is another one.
    shared = place if "://" in str(place) else Path(place).absolute()
    return Orders(job=job, store=shared, endpoint=endpoint, options=options)


def _judging(config: LabelConfig) -> Judging | None:
    if config.judge is None:
        return None
    data = config.output.with_suffix(".judge.jsonl")
    return Judging(config.judge, data, config.output.with_suffix(".judge"), config.seed)


async def _judge(
    config: LabelConfig, judging: Judging, job: Job, store: RequestStore
) -> tuple[Judge, dict[str, Any]]:
    """Has the labels marked, with what the budget leaves."""
    left_usd = config.budget_usd
    if left_usd is not None:
        left_usd -= await asyncio.to_thread(paid_usd, job, store)
    rows = Reader(job, {}, drop_gold=True).rows(store)
    labels = (label for labels in rows for label in labels)
    judge, ran = await judging.run(labels, store, budget_usd=left_usd, max_attempts=config.max_attempts)
    return judge, await asyncio.to_thread(summary_of, judge, ran, store)


def _label_batch(config: LabelConfig, verifiers: Mapping[str, Verifier]) -> dict[str, Any] | None:
    """Takes the results there are; writes the labels when nothing is open, else the next batch's requests."""
    prices = Prices.of(config.endpoint)
    with RequestStore.open(config.store_path) as store:
        job = _job(config, Teacher(model=config.endpoint.model or "", revision=None))
        before = register(job, store)
        if config.batch_results is not None:
            print(take_results(job, store, config.batch_results, prices=prices).describe())
        registered = register(job, store, reopen=False)
        if registered.open:
            left_usd = None if config.budget_usd is None else config.budget_usd - registered.paid_usd
            count = write_requests(job, store, config.batch_path, prices=prices, left_usd=left_usd)
            print(
                f"{count} requests -> {config.batch_path}; run again with --batch-results and their results"
            )
            return None
        ran = Ran(
            requests=registered.requests, reused=before.reused, unmetered=0, wall_s=0.0, latency_before_s=0.0
        )
        return _write(config, job, store, ran, verifiers)


def _job(config: LabelConfig, teacher: Teacher) -> Job:
    sampling = Sampling(
        samples=config.samples,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
        max_samples=config.max_samples,
        confidence=config.confidence,
    )
    return Job(
        data=config.data,
        task=config.task,
        teacher=teacher,
        sampling=sampling,
        limit=config.limit,
        answers=config.answers,
        redact=Redaction(config.redact) if config.redact else None,
        hint=config.hint_text if config.hint else None,
        logprobs=config.logprobs,
        top_logprobs=config.topk_logprobs,
    )


def _scores_writer(config: LabelConfig) -> ScoresWriter | None:
    if config.topk_logprobs is None or config.student is None:
        return None
    return ScoresWriter.of(config.student, config.task, k=config.topk_logprobs)


def _write(
    config: LabelConfig,
    job: Job,
    store: RequestStore,
    ran: Ran,
    verifiers: Mapping[str, Verifier],
    *,
    judged: tuple[Judge, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    tally = Tally()
    judge, marked = judged or (None, None)
    reader = Reader(job, verifiers, drop_gold=config.drop_gold, judge=judge)
    calibration: dict[str, Any] = {}
    if config.calibrate is not None:
        rate, calibration = calibrate(reader.rows(store), config.calibrate)
        reader = Reader(job, verifiers, drop_gold=config.drop_gold, judge=judge, rate=rate)
    write_jsonl(config.output, reader.read_back(store, tally=tally))
    if config.export is not None:
        export(store, config.export)
    if tally.done and (scores := _scores_writer(config)) is not None:
        print(scores.write(reader.rows(store), store, config.scores_path, teacher=job.teacher).describe())
    adaptive = {"max_samples": config.max_samples, "confidence": config.confidence}
    summary = {
        **tally.to_summary(),
        "requests": ran.requests,
        "reused": ran.reused,
        "unmetered": ran.unmetered,
        # What killed runs took is not known; their answers took their latency, `concurrency` at a time.
        "wall_s": ran.wall_s + ran.latency_before_s / config.concurrency,
        "run_s": ran.wall_s,
        "teacher": {"model": job.teacher.model, "revision": job.teacher.revision},
        "samples": config.samples,
        **(adaptive if config.max_samples is not None else {}),
        "temperature": config.temperature,
        **({"without_logprob": tally.without_logprob} if config.logprobs else {}),
        **({"judge": marked} if marked is not None else {}),
        **({"calibration": calibration} if calibration else {}),
    }
    write_json(config.summary_path, summary)
    return summary


def _describe(summary: dict[str, Any], config: LabelConfig) -> str:
    reasons = ", ".join(f"{name} {count}" for name, count in summary["by_error"].items())
    failed = f"; {summary['failed']} failed: {reasons}" if reasons else ""
    cost = f", ${summary['cost_usd']:.4g} in all" if summary["cost_usd"] is not None else ""
    calibration: dict[str, Any] = summary.get("calibration") or {}
    if "skipped" in calibration:
        cost += f"; not calibrated: {calibration['skipped']}"
    elif calibration:
        cost += f"; calibration error {calibration['ece_before']:.3f} -> {calibration['ece_after']:.3f}"
    return (
        f"{summary['done']} of {summary['rows']} labeled in {summary['run_s']:.1f} s, "
        f"{summary['reused']} reused{cost}{failed} -> {config.output}"
    )
