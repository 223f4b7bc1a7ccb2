"""What `decant curate` can be asked for: which labels become training rows."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from decant.config import Config, InputPath, OptionalInputPath, OptionalOutputPath, OutputPath
from decant.task import TaskConfig
from decant_distill.curate_rules import Keep
from decant_distill.curate_text import TextConfig
from decant_distill.redact import RedactKind
from decant_distill.redact_names import NamesConfig
from decant_distill.reviewed import OptionalStore

Checks = Literal["ignore", "no_failure", "all_passed"]
SplitBy = Literal["prompt", "group"]


class CurateConfig(Config):
    """Which labels become training rows."""

    labels: InputPath = Field(description="label file that `decant label` wrote")
    output: OutputPath = Field(description="training set to write (JSONL)")
    report: OptionalOutputPath = Field(
        default=None, description="report; curation.json beside the output when left out"
    )
    keep: Keep = Field(
        default="all", description="all answers, those the samples agree on, or those that equal gold"
    )
    min_votes: int = Field(default=2, ge=1, description="fewest equal answers for `keep = majority`")
    max_per_prompt: int | None = Field(
        default=None, ge=1, description="most labels kept for one prompt; first come"
    )
    decontaminate: OptionalInputPath = Field(
        default=None, description="evaluation dataset whose prompts are dropped"
    )
    decontaminate_ngram: int | None = Field(
        default=None,
        ge=3,
        description="drop prompts that share so many words in a row with it, for example 13",
    )
    decontaminate_similarity: float | None = Field(
        default=None, ge=0.3, le=1, description="drop prompts that are so much like one of it (MinHash)"
    )
    min_vote_share: float | None = Field(
        default=None, gt=0, le=1, description="smallest share of the samples that gave the answer"
    )
    min_confidence: float | None = Field(
        default=None, gt=0.5, lt=1, description="least probability that the answer is the samples' majority"
    )
    min_calibrated: float | None = Field(
        default=None, gt=0, lt=1, description="least calibrated confidence (`decant label` with gold)"
    )
    checks: Checks = Field(
        default="ignore",
        description="what the verifiers of `decant label` found: ignore it, no failure, or all passed",
    )
    text: TextConfig = Field(default=TextConfig(), description="rules on the text of a label")
    min_quality: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="least probability of being accepted, by a classifier of what was rejected",
    )
    max_perplexity_percentile: float | None = Field(
        default=None, gt=0, lt=100, description="drop the texts that are odder than so many percent of them"
    )
    min_perplexity_percentile: float | None = Field(
        default=None, gt=0, lt=100, description="drop the texts that are more commonplace than all but these"
    )
    diverse: int | None = Field(
        default=None, ge=1, description="keep only so many prompts, as unlike each other as can be"
    )
    near_duplicates: float | None = Field(
        default=None, ge=0.3, le=1, description="drop prompts that are so much like an earlier one (MinHash)"
    )
    balance: float | None = Field(
        default=None, ge=1, description="most labels of one answer, in multiples of the median answer's"
    )
    redact: tuple[RedactKind, ...] = Field(
        default=(),
        description="email, secret, iban, national_id, card, ip, phone; with a model (extra presidio)"
        " person, place, organization: taken out of prompts and completions",
    )
    names: NamesConfig = Field(default=NamesConfig(), description="what finds names, where they are redacted")
    reviews: OptionalStore = Field(
        default=None,
        description="request store whose review decisions hold; that beside the labels, if there is one",
    )
    validation: OptionalOutputPath = Field(
        default=None, description="part of the rows that goes into this file"
    )
    validation_share: float = Field(default=0.1, gt=0, lt=1, description="share of the rows for `validation`")
    split_by: SplitBy = Field(
        default="prompt", description="what never stands in both files: a prompt, or a group"
    )
    seed: int = Field(default=0, description="which rows `balance` and `validation` choose")
    task: TaskConfig = Field(
        default=TaskConfig(), description="how a row of the evaluation dataset becomes a prompt"
    )

    @model_validator(mode="after")
    def _compares_with_something(self) -> Self:
        asked = (self.decontaminate_ngram, self.decontaminate_similarity)
        if self.decontaminate is None and any(value is not None for value in asked):
            raise ValueError("decontaminate_ngram and decontaminate_similarity need decontaminate, the set")
        low, high = self.min_perplexity_percentile, self.max_perplexity_percentile
        if low is not None and high is not None and low >= high:
            raise ValueError("min_perplexity_percentile must be below max_perplexity_percentile")
        return self

    @property
    def report_path(self) -> Path:
        """Where the report goes."""
        return self.report or self.output.with_name("curation.json")

    @property
    def dropped_path(self) -> Path:
        """Where every dropped line goes, with its rule and the reason."""
        return self.report_path.with_suffix(".dropped.jsonl")

    @property
    def page_path(self) -> Path:
        """Where the page about the rules goes."""
        return self.report_path.with_suffix(".html")
