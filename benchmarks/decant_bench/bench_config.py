"""What a benchmark run is asked to do."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from decant.config import Config, OptionalInputPath, OutputPath
from decant.endpoint import EndpointConfig
from decant.exchange import Route
from decant.task import TaskConfig

BenchArrival = Literal["poisson", "constant", "gamma", "ramp", "trace", "closed"]


class LengthConfig(Config):
    """A distribution of lengths; `mean` and `std` are those of the lengths themselves."""

    kind: Literal["fixed", "normal", "lognormal"] = Field(default="fixed", description="shape")
    mean: float = Field(default=128.0, gt=0, description="mean length")
    std: float = Field(default=0.0, ge=0, description="standard deviation; none for fixed")
    low: int = Field(default=1, ge=1, description="shorter ones become this long")
    high: int | None = Field(default=None, ge=1, description="longer ones become this long")

    @model_validator(mode="after")
    def _is_a_distribution(self) -> Self:
        if (self.kind == "fixed") != (self.std == 0):
            raise ValueError(f"a {self.kind} length has {'no' if self.kind == 'fixed' else 'a positive'} std")
        if self.high is not None and self.high < self.low:
            raise ValueError(f"high {self.high} is below low {self.low}")
        return self


class WorkloadConfig(Config):
    """What the requests are: a dataset's rows, or synthetic ones with these lengths."""

    data: OptionalInputPath = Field(default=None, description="JSONL dataset; synthetic prompts without it")
    task: TaskConfig = Field(default=TaskConfig(), description="how a row becomes a request")
    tokenizer: OptionalInputPath = Field(
        default=None, description="model folder whose tokenizer counts; words are counted without it"
    )
    prompt_tokens: LengthConfig = Field(default=LengthConfig(mean=256), description="length of the prompts")
    output_tokens: LengthConfig = Field(default=LengthConfig(mean=64), description="longest answers")
    prefix_tokens: int = Field(default=0, ge=0, description="length of a beginning that prompts share")
    prefix_groups: int = Field(default=1, ge=1, description="how many different beginnings there are")
    turns: int = Field(default=1, ge=1, description="questions per conversation, each after the last answer")
    think_s: float = Field(default=0.0, ge=0, description="pause between an answer and the next question")
    extra: dict[str, Any] = Field(default={}, description="other fields of every request (ignore_eos, ...)")

    @model_validator(mode="after")
    def _rows_have_no_turns(self) -> Self:
        if self.data is not None and (self.turns > 1 or self.prefix_tokens):
            raise ValueError("turns and prefix_tokens are for synthetic prompts, not for a dataset")
        return self


class SloConfig(Config):
    """What a request must keep to count as good; latencies count from when it was due."""

    ttft_s: float | None = Field(default=None, gt=0, description="longest time to the first token")
    tpot_s: float | None = Field(default=None, gt=0, description="longest time per token after the first")
    e2e_s: float | None = Field(default=None, gt=0, description="longest time to the last token")

    @property
    def is_set(self) -> bool:
        """Whether there is any objective."""
        return any(limit is not None for limit in (self.ttft_s, self.tpot_s, self.e2e_s))


class BenchConfig(Config):
    """One load on one endpoint, and where the result goes."""

    output: OutputPath = Field(description="folder for result.json, requests.jsonl, the CSVs and report.html")
    name: str = Field(default="", description="what the run is called; the output folder's name if empty")
    endpoint: EndpointConfig = Field(description="where the requests go")
    workload: WorkloadConfig = Field(default=WorkloadConfig(), description="what the requests are")
    slo: SloConfig = Field(default=SloConfig(), description="what a good request keeps")
    route: Route = Field(default="chat", description="which kind of request")
    stream: bool = Field(default=True, description="ask for streamed answers")
    arrival: BenchArrival = Field(default="poisson", description="when requests are due")
    rate: float | None = Field(default=None, gt=0, description="requests per second; where a ramp starts")
    rate_end: float | None = Field(default=None, gt=0, description="requests per second where a ramp ends")
    gamma_shape: float = Field(
        default=1.0, gt=0, description="gamma arrivals: 1 is Poisson, less is burstier"
    )
    trace: OptionalInputPath = Field(default=None, description="trace to replay (arrival trace)")
    trace_speed: float = Field(default=1.0, gt=0, description="how many times faster to replay it")
    concurrency: int = Field(default=8, ge=1, description="clients of the closed loop and the warm-up")
    in_flight: int | None = Field(
        default=None, ge=1, description="open loop: most requests at once; those due wait, and are charged"
    )
    requests: int | None = Field(default=None, ge=1, description="how many requests (or conversations)")
    duration_s: float | None = Field(default=None, gt=0, description="how long requests are sent")
    drain_s: float = Field(default=60.0, gt=0, description="longest wait for answers after the last send")
    warmup: int = Field(default=8, ge=0, description="unmeasured requests sent first, with other prompts")
    processes: int = Field(default=1, ge=1, description="processes that send, each its share of the load")
    seed: int = Field(default=0, ge=0, description="seed of the schedule, the prompts and the intervals")
    error_share: float = Field(
        default=0.1, gt=0, description="a client error above this share of the latency makes a run invalid"
    )
    push_gateway: str | None = Field(
        default=None, description="Prometheus Pushgateway that gets the numbers (http://HOST:9091)"
    )
    live: bool = Field(default=True, description="show a live view on a terminal")

    @model_validator(mode="after")
    def _load_is_whole(self) -> Self:
        for name, needed in self._needs().items():
            if (dict(self)[name] is not None) != needed:
                raise ValueError(f"arrival {self.arrival} {'needs' if needed else 'has no'} {name}")
        bounded = self.requests is not None or self.duration_s is not None
        if not bounded and self.arrival != "trace":
            raise ValueError("set requests or duration_s, so that the run ends")
        if self.arrival == "ramp" and self.duration_s is None:
            raise ValueError("arrival ramp needs duration_s, over which the rate changes")
        if not self.stream and (self.slo.ttft_s or self.slo.tpot_s):
            raise ValueError("without a stream there is no first token: set slo.e2e_s only")
        if self.arrival == "closed" and self.requests is None:
            raise ValueError("arrival closed needs requests; duration_s may end it earlier")
        if self.in_flight is not None and (self.arrival == "closed" or self.in_flight < self.processes):
            raise ValueError("in_flight is for an open loop, and at least one for each process")
        if self.arrival == "closed" and self.processes > self.concurrency:
            raise ValueError(f"{self.processes} processes cannot share {self.concurrency} clients")
        return self

    def _needs(self) -> dict[str, bool]:
        paced = self.arrival in ("poisson", "constant", "gamma", "ramp")
        return {"rate": paced, "rate_end": self.arrival == "ramp", "trace": self.arrival == "trace"}

    @property
    def title(self) -> str:
        """What the run is called."""
        return self.name or Path(self.output).name
