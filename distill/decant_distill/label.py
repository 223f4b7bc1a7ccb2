"""The label stage: a teacher answers a dataset, with its reasoning; a rerun pays for nothing twice."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decant.endpoint import Endpoint, open_endpoint
from decant.errors import DataError, EndpointError
from decant.files import write_json, write_jsonl
from decant.store import RequestStore, store_name
from decant_distill.batch_api import BatchApi
from decant_distill.label_batch import take_results, write_requests
from decant_distill.label_batch_api import BatchLabeling, BatchOptions
from decant_distill.label_calibrate import calibrate
from decant_distill.label_config import LabelConfig
from decant_distill.label_export import check_export, export
from decant_distill.label_job import register
from decant_distill.label_judge import Judge, Judging, paid_usd, summary_of
from decant_distill.label_output import Reader, Tally
from decant_distill.label_ray import Orders, RayOptions, ask_by_ray, check_ray
from decant_distill.label_requests import Job, Sampling, Teacher, read_limited
from decant_distill.label_run import LabelRun, Ran
from decant_distill.label_spend import Prices
from decant_distill.redact import Redaction
from decant_distill.train.endpoint_scores import ScoresWriter
from decant_distill.verifiers import Verifier, load_verifiers

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
        redact=Redaction.of(config.redact, config.names),
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
