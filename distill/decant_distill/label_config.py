"""What `decant label` can be told."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from decant.answers import AnswersConfig
from decant.config import Config, InputPath, OptionalInputPath, OptionalOutputPath, OutputPath
from decant.endpoint import EndpointConfig
from decant.task import TaskConfig
from decant_distill.calibration import Method
from decant_distill.label_hint import DEFAULT_HINT
from decant_distill.label_judge import JudgeConfig
from decant_distill.label_requests import GOLD_FIELD
from decant_distill.label_spend import Prices
from decant_distill.redact import RedactKind
from decant_distill.redact_names import NamesConfig
from decant_distill.verifiers import VerifierConfig

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
        description="email, secret, iban, national_id, card, ip, phone; with a model (extra presidio)"
        " person, place, organization: taken out before a message is sent",
    )
    names: NamesConfig = Field(default=NamesConfig(), description="what finds names, where they are redacted")
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
