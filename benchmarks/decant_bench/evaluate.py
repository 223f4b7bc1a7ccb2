"""`decant eval`: replays a dataset against an endpoint, and keeps every answer with its timing.

One pass gives quality and latency; a closed-loop burst of the same requests afterwards gives the capacity
that the cost per request is counted from. Nothing is written before the end: latencies of two runs must not
mix, so an interrupted replay is replayed anew.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from decant.answers import AnswersConfig
from decant.config import Config, InputPath, OutputPath
from decant.endpoint import Endpoint, EndpointConfig, open_endpoint
from decant.errors import EndpointError
from decant.files import sha256_file
from decant.hardware import describe_command, describe_commit, describe_machine, describe_versions
from decant.progress import Progress
from decant.task import Message, TaskConfig
from decant.timing import RequestTiming, summarize
from decant.wire_client import open_load_client
from decant_bench.event_loop import run_measuring
from decant_bench.latency import latency_summaries
from decant_bench.load import Arrival, arrival_offsets_s
from decant_bench.predictions import (
    BAD_ROW,
    Evaluation,
    ModelRecord,
    Prediction,
    Prices,
    SaturationRecord,
    TokenRecord,
    write_predictions,
)
from decant_bench.questions import Question, Questions, read_questions, warmup_messages
from decant_bench.replay import (
    ChatClient,
    Exchange,
    ReplayRequest,
    Saturation,
    cached_prompt_share,
    measure_saturation,
    replay_closed,
    replay_open,
)
from decant_bench.scoring import score

_LEAST_PER_CLIENT = 2
"""With fewer burst requests per client there is no time in which every client is busy."""


class EvalConfig(Config):
    """What to replay, where, and under which load."""

    data: InputPath = Field(description="dataset (JSONL) to replay")
    output: OutputPath = Field(description="folder for predictions.jsonl and eval.json")
    stage: str = Field(description="name of the stage that is measured")
    endpoint: EndpointConfig = Field(description="where the requests go")
    task: TaskConfig = Field(default=TaskConfig(), description="how a row becomes a request")
    answers: AnswersConfig = Field(
        default=AnswersConfig(), description="where the answer stands in a response"
    )
    limit: int | None = Field(default=None, ge=1, description="replay only the first lines of the dataset")
    arrival: Arrival = Field(
        default="poisson", description="open loop with Poisson or constant arrivals, or closed loop"
    )
    rate: float | None = Field(default=None, gt=0, description="requests per second that an open loop offers")
    concurrency: int = Field(
        default=8, ge=1, description="clients of the closed loop, the warm-up and the burst"
    )
    seed: int = Field(default=0, description="seed of the arrival schedule and the warm-up prompts")
    temperature: float = Field(default=0.0, ge=0, description="sampling temperature; 0 is greedy")
    warmup: int = Field(
        default=8, ge=0, description="unscored requests sent first, with prompts of their own"
    )
    saturate_requests: int = Field(
        default=64,
        ge=0,
        description="requests of the closed-loop burst that finds the capacity; none at token prices",
    )

    @model_validator(mode="after")
    def _load_is_whole(self) -> Self:
        if (self.arrival == "closed") != (self.rate is None):
            raise ValueError(f"arrival {self.arrival} {'has no' if self.rate else 'needs a'} rate")
        least = _LEAST_PER_CLIENT * self.concurrency
        if 0 < self.saturate_requests < least:
            raise ValueError(
                f"saturate_requests must be 0, or {least} or more for {self.concurrency} clients"
            )
        return self

    @property
    def burst_requests(self) -> int:
        """How many requests the burst sends: none where tokens are paid, for the cost is known without."""
        prices = self.endpoint.usd_per_million_prompt_tokens, self.endpoint.usd_per_million_completion_tokens
        return self.saturate_requests if prices == (None, None) else 0


CONFIG = EvalConfig


def run(config: EvalConfig) -> None:
    """Replays, writes the prediction folder and prints what came out."""
    questions = read_questions(config.data, task=config.task, limit=config.limit)
    replayed = run_measuring(_replay(config, questions))
    if not any(exchange.completion for exchange in replayed.measured):
        n, first = len(replayed.measured), replayed.measured[0].error
        raise EndpointError(f"{config.stage}: none of {n} requests completed; the first: {first}")
    pairs = zip(questions.asked, replayed.measured, strict=True)
    predictions = [
        score(question, exchange, task=config.task, answers=config.answers) for question, exchange in pairs
    ]
    predictions += questions.unusable
    evaluation = _evaluation(config, questions, replayed)
    write_predictions(config.output, predictions, evaluation)
    print(_report(config, predictions, evaluation))


@dataclass(frozen=True, slots=True)
class _Replayed:
    """What one replay gave; `measured` is in the order of the questions."""

    endpoint: Endpoint
    warmup: list[Exchange]
    measured: list[Exchange]
    saturation: Saturation | None


async def _replay(config: EvalConfig, questions: Questions) -> _Replayed:
    # Beside the output folder, which takes its place only at the end: the log must outlive a failure.
    logs = config.output.with_name(f"{config.output.name}.logs")
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(open_endpoint(config.endpoint, log_dir=logs))
        client = open_load_client(
            endpoint.base_url, api_key=endpoint.api_key, timeout_s=config.endpoint.request_timeout_s
        )
        await stack.enter_async_context(client)
        requests = [_request(config, endpoint.model, q.id, q.messages) for q in questions.asked]
        warmup = await _warm_up(config, client, endpoint.model, questions.asked)
        measured = await _measure(config, client, requests)
        saturation = await _saturate(config, client, endpoint.model, questions.asked)
    return _Replayed(endpoint, warmup, measured, saturation)


def _request(config: EvalConfig, model: str, request_id: str, messages: list[Message]) -> ReplayRequest:
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "temperature": config.temperature,
        "max_tokens": config.task.max_tokens,
        "seed": config.seed,
        **config.answers.request_fields(),
    }
    return ReplayRequest(request_id, body)


async def _warm_up(
    config: EvalConfig, client: ChatClient, model: str, questions: Sequence[Question]
) -> list[Exchange]:
    prompts = warmup_messages(questions, n=config.warmup, seed=config.seed)
    requests = [_request(config, model, f"warmup-{i}", messages) for i, messages in enumerate(prompts)]
    exchanges = await replay_closed(client, requests, clients=config.concurrency, on_done=lambda _: None)
    if exchanges and all(exchange.error for exchange in exchanges):
        raise EndpointError(f"{config.stage}: every warm-up request failed; the first: {exchanges[0].error}")
    return exchanges


async def _measure(
    config: EvalConfig, client: ChatClient, requests: Sequence[ReplayRequest]
) -> list[Exchange]:
    with Progress(len(requests), unit="requests", label=f"eval {config.stage}") as progress:
        failed = 0

        def count(exchange: Exchange) -> None:
            nonlocal failed
            failed += exchange.error is not None
            progress.advance(1, failed=failed)

        if config.rate is None:
            return await replay_closed(client, requests, clients=config.concurrency, on_done=count)
        offsets_s = arrival_offsets_s(config.arrival, n=len(requests), rate=config.rate, seed=config.seed)
        return await replay_open(client, requests, offsets_s, on_done=count)


async def _saturate(
    config: EvalConfig, client: ChatClient, model: str, asked: Sequence[Question]
) -> Saturation | None:
    n = config.burst_requests
    if not n:
        return None
    questions = _burst_questions(config, asked)
    burst = [_request(config, model, f"burst-{i}", questions[i % len(questions)].messages) for i in range(n)]
    with Progress(n, unit="requests", label=f"eval {config.stage}: capacity") as progress:
        exchanges = await replay_closed(
            client, burst, clients=config.concurrency, on_done=lambda _: progress.advance(1)
        )
    return measure_saturation(exchanges, clients=config.concurrency)


def _burst_questions(config: EvalConfig, asked: Sequence[Question]) -> Sequence[Question]:
    """The dataset's rows after the limit where they suffice: the server cannot have cached their prompts."""
    if config.limit is None:
        return asked
    more = read_questions(config.data, task=config.task, limit=config.limit + config.burst_requests)
    fresh = more.asked[len(asked) :]
    return fresh if len(fresh) == config.burst_requests else asked


def _evaluation(config: EvalConfig, questions: Questions, replayed: _Replayed) -> Evaluation:
    timings = [exchange.timing for exchange in replayed.measured]
    done = [timing for timing in timings if timing.ok]
    errors = Counter(timing.error_kind for timing in timings if timing.error_kind is not None)
    if questions.unusable:
        errors[BAD_ROW] = len(questions.unusable)
    endpoint, settings = replayed.endpoint, config.endpoint
    return Evaluation(
        stage=config.stage,
        engine=str(endpoint.description.get("engine") or "remote"),
        model=ModelRecord.model_validate(
            {"id": endpoint.model, "source": str(settings.serve or settings.base_url), **endpoint.description}
        ),
        n=len(timings) + len(questions.unusable),
        counts={"requests": len(timings), "completed": len(done), "errors": dict(errors)},
        load=_load(config, timings),
        latency={name: dict(summary) for name, summary in latency_summaries(timings).items()},
        tokens=TokenRecord(
            prompt_mean=_mean([timing.prompt_tokens for timing in done]),
            completion_mean=_mean([timing.completion_tokens for timing in done]),
            cached_prompt_share=cached_prompt_share(done),
        ),
        saturation=SaturationRecord.model_validate(
            asdict(replayed.saturation) if replayed.saturation else {}
        ),
        warmup={"n": len(replayed.warmup), "failed": sum(e.error is not None for e in replayed.warmup)},
        prices=Prices.model_validate(settings.model_dump()),
        hardware=describe_machine(),
        versions=describe_versions(),
        command=describe_command(),
        commit=describe_commit(Path(__file__).parent),
        config=config.model_dump(mode="json"),
    )


def _load(config: EvalConfig, timings: Sequence[RequestTiming]) -> dict[str, Any]:
    """The offered load, and how well the client kept to it."""
    delays_s = [timing.send_delay_s for timing in timings]
    return {
        "arrival": config.arrival,
        "rate": config.rate,
        "clients": config.concurrency if config.arrival == "closed" else None,
        "seed": config.seed,
        "requests": len(timings),
        "data_sha256": sha256_file(config.data),
        "send_delay_s": {**summarize(delays_s), "max": max(delays_s)},
    }


def _mean(counts: Sequence[int | None]) -> float | None:
    known = [count for count in counts if count is not None]
    return sum(known) / len(known) if known else None


def _report(config: EvalConfig, predictions: Sequence[Prediction], evaluation: Evaluation) -> str:
    counts, saturation = evaluation.counts, evaluation.saturation
    graded = [prediction.correct for prediction in predictions if prediction.correct is not None]
    lines = [
        f"{config.stage}: {counts['completed']} of {evaluation.n} requests completed ({evaluation.engine})"
    ]
    if counts["errors"]:
        kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(counts["errors"].items()))
        lines[0] += f"; not completed: {kinds}"
    if graded:
        lines.append(f"  accuracy {sum(graded) / len(graded):.1%} ({sum(graded)} of {len(graded)})")
    e2e, ttft = evaluation.latency["e2e_response_s"], evaluation.latency["ttft_response_s"]
    for name, summary in (("time to first token", ttft), ("end to end", e2e)):
        if summary["n"]:
            p50, p95, p99 = (1000 * summary[key] for key in ("p50", "p95", "p99"))
            lines.append(f"  {name} p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms")
    delay_s = evaluation.load["send_delay_s"]["p99"]
    lines.append(f"  requests left at most {1000 * delay_s:.1f} ms after they were due (p99)")
    if saturation.requests_per_s is not None:
        lines.append(
            f"  capacity {saturation.requests_per_s:.2f} requests/s with {saturation.clients} clients"
        )
    return "\n".join([*lines, f"  written to {config.output}"])
