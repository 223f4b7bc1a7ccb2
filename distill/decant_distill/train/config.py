"""What `decant train` can be told."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from decant.config import Config, InputPath, OptionalInputPath, OutputPath
from decant.task import TaskConfig
from decant_distill.train.rows import Teaching, Weighing

ALL_LINEAR = "all-linear"
RATIONALE_PREFIX = "[rationale] "

Method = Literal["qlora", "lora", "full"]


class TrainConfig(Config):
    """A student, the rows it learns from, and how."""

    base: InputPath = Field(description="Hugging Face folder of the student before training")
    data: InputPath = Field(description="curated rows, JSONL with prompt, answer and reasoning")
    learn_from: Literal["labels", "gold"] = Field(
        default="labels", description="curated labels, or the gold of a plain dataset, read as the task says"
    )
    output: OutputPath = Field(description="folder for the adapter, or for the model with method full")
    method: Method = Field(
        default="qlora",
        description="adapters over an NF4 base, adapters over the base as it is, or all weights",
    )
    placement: Teaching = Field(
        default="rationale_then_answer",
        description="where the rationale stands; multitask teaches answer and rationale as two tasks",
    )
    token_budget: int | None = Field(
        default=None, ge=1, description="stop after this many tokens, without padding; if not set, epochs"
    )
    epochs: float = Field(default=3.0, gt=0, description="passes over the rows where no token_budget is set")
    batch_tokens: int = Field(default=8192, ge=1, description="most tokens in one step, padding included")
    learning_rate: float = Field(
        default=2e-4, gt=0, description="highest learning rate, falling to 0 by a cosine"
    )
    warmup_ratio: float = Field(
        default=0.03, ge=0, lt=1, description="share of the steps over which it rises"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="longest gradient; a longer one is scaled down"
    )
    lora_r: int = Field(default=32, ge=1, description="rank of the adapters")
    lora_alpha: int = Field(default=64, ge=1, description="adapters are scaled by lora_alpha / lora_r")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout in front of the adapters")
    targets: tuple[str, ...] = Field(
        default=(ALL_LINEAR,), description="names of the linear layers that get an adapter"
    )
    compute_dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16",
        description="type of the frozen weights and the products; adapters are float32 always",
    )
    max_length: int | None = Field(
        default=None,
        ge=8,
        description="longest row in tokens, the student's own context if shorter or not set",
    )
    max_overlong_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="share of the rows that may be longer (they are dropped and counted)",
    )
    length_bucketing: bool = Field(default=True, description="batch rows of similar length: less padding")
    seed: int = Field(default=0, ge=0, description="of the batch order, the adapters' start and dropout")
    save_every_steps: int = Field(default=100, ge=1, description="steps between checkpoints")
    golden_rows: int = Field(default=8, ge=1, description="golden prompts that later stages must reproduce")
    golden_tokens: int = Field(default=96, ge=1, description="longest golden answer, in tokens")
    normalization: Literal["token", "example"] | None = Field(
        default=None,
        description="tokens of a batch count alike, or its examples; if not set, example for multitask",
    )
    answer_weight: float = Field(
        default=1.0, gt=0, description="what a token of the answer's line counts; others count 1"
    )
    rationale_weight: float = Field(
        default=1.0, ge=0, description="what a rationale counts beside its answer in multitask"
    )
    rationale_prefix: str = Field(
        default=RATIONALE_PREFIX,
        min_length=1,
        description="opens the user's message of multitask's rationale task",
    )
    prompts_alike: bool = Field(
        default=False, description="the k rows of one prompt count 1/k each, so that prompts count alike"
    )
    objective: Literal["labels", "on-policy"] = Field(
        default="labels",
        description="learn the labels, or from what a teacher says of the student's own answers (extra trl)",
    )
    teacher: OptionalInputPath = Field(
        default=None, description="for on-policy: Hugging Face folder of a teacher with the same vocabulary"
    )
    max_new_tokens: int = Field(
        default=256, ge=1, description="for on-policy: longest answer that the student writes"
    )
    sampling_temperature: float = Field(
        default=1.0, gt=0, description="for on-policy: of the student's answers and of the divergence"
    )
    divergence: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="for on-policy: 0 is forward KL, 1 reverse KL, between them a Jensen-Shannon divergence",
    )
    teacher_scores: OptionalInputPath = Field(
        default=None, description="folder of a teacher's scores of these rows, from decant logits"
    )
    teacher_weight: float = Field(
        default=0.5, gt=0, le=1, description="share of the teacher's scores in the loss; the rest: labels"
    )
    teacher_temperature: float = Field(
        default=1.0, gt=0, description="softens both distributions where top-k scores are learned"
    )
    adapter: Literal["lora", "rslora", "dora", "pissa"] = Field(
        default="lora", description="plain LoRA, or a variant of it; pissa needs method lora"
    )
    lora_plus_ratio: float | None = Field(
        default=None, ge=1, description="LoRA+: how much faster the B matrices learn than the A matrices"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations twice rather than keep them: less memory, slower"
    )
    optimizer: Literal["adamw", "paged_adamw"] = Field(
        default="adamw", description="AdamW, or one whose state moves to the CPU when GPU memory is short"
    )
    lr_sweep: bool | None = Field(
        default=None,
        description="try a third of, once and three times the learning rate on a slice first; if not set,"
        " for long runs that name no learning_rate",
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads, torch's choice if not set")
    task: TaskConfig = Field(default_factory=TaskConfig, description="how answers are marked")

    spike_rewind: bool = Field(
        default=True, description="go back before a spike of the loss and leave its batches out"
    )
    max_rewinds: int = Field(default=5, ge=0, description="rewinds after which a run is given up")
    rewind_steps: int | None = Field(
        default=None,
        ge=1,
        description="least steps to go back before a spike; if not set, a fiftieth of the run, from 5 to 100",
    )
    rewind_batches: int | None = Field(
        default=None, ge=1, description="batches that a rewind leaves out; if not set, five times its steps"
    )
    batch_ramp: Literal[1, 2, 4, 8, 16] = Field(
        default=1, description="how many times smaller the first batches are; 1 for batches of one size"
    )
    batch_ramp_share: float = Field(
        default=0.2, gt=0, le=1, description="share of the tokens over which batches grow to their full size"
    )
    dev_share: float = Field(
        default=0.0, ge=0, lt=1, description="share of the rows held out to judge the student by; 0 for none"
    )
    dev_data: OptionalInputPath = Field(
        default=None, description="a file of its own to judge the student by, in the form of data"
    )
    dev_by: Literal["prompt", "group"] = Field(
        default="prompt", description="rows of one prompt, or of one group, are held out together"
    )
    dev_metric: Literal["loss", "accuracy"] = Field(
        default="loss", description="what makes a student the best: its loss, or its greedy answers"
    )
    dev_rows: int = Field(default=256, ge=1, description="most held-out rows that are judged each time")
    eval_every_steps: int = Field(
        default=100, ge=1, description="steps between judgements, where rows are held out"
    )
    stop_after: int | None = Field(
        default=None, ge=1, description="judgements in a row without a better one that end the run"
    )
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=(), description="also send the curves there (extras of the same names)"
    )
    dry_run: bool = Field(
        default=False, description="say from config.json what memory a device needs, and load nothing"
    )
    device_memory_gb: float | None = Field(
        default=None, gt=0, description="memory of one device for --dry-run; if not set, of this machine's"
    )

    @model_validator(mode="after")
    def _has_dev_rows(self) -> "TrainConfig":
        if self.dev_share and self.dev_data:
            raise ValueError("give dev_share or dev_data, not both")
        if self.stop_after and not (self.dev_share or self.dev_data):
            raise ValueError("stop_after needs rows to judge by: give dev_share or dev_data")
        return self

    @field_validator("targets")
    @classmethod
    def _names_or_all(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or (ALL_LINEAR in value and len(value) > 1):
            raise ValueError(f'must name layers, or be ["{ALL_LINEAR}"] alone')
        return value

    @model_validator(mode="after")
    def _adapters_fit_the_method(self) -> Self:
        if self.method == "full" and (self.adapter != "lora" or self.lora_plus_ratio is not None):
            raise ValueError("adapter and lora_plus_ratio need adapters: use method qlora or lora")
        if self.adapter == "pissa" and self.method == "qlora":
            raise ValueError("pissa takes the base's weights apart and cannot do so in NF4: use method lora")
        if self.optimizer == "paged_adamw" and self.lora_plus_ratio is not None:
            raise ValueError("lora_plus_ratio comes with plain AdamW: leave optimizer at adamw")
        return self

    @model_validator(mode="after")
    def _a_teacher_for_on_policy(self) -> Self:
        if (self.objective == "on-policy") != (self.teacher is not None):
            raise ValueError("objective on-policy and teacher are given together, or neither")
        if self.objective == "on-policy" and (
            self.teacher_scores is not None or self.placement == "multitask"
        ):
            raise ValueError("objective on-policy learns from no labels: no teacher_scores, no multitask")
        if self.objective == "on-policy" and self.lr_sweep:
            raise ValueError("lr_sweep tries rates on labels; with objective on-policy name learning_rate")
        return self

    @property
    def weighing(self) -> Weighing:
        """What a lesson counts."""
        return Weighing(
            rationale_weight=self.rationale_weight,
            rationale_prefix=self.rationale_prefix,
            prompts_alike=self.prompts_alike,
        )

    def identity(self) -> dict[str, object]:
        """The settings that decide what is learned: a checkpoint may only be resumed where they are equal."""
        without = {"output", "base", "data", "dev_data", "save_every_steps", "golden_rows", "golden_tokens"}
        without |= {
            "threads",
            "max_rewinds",
            "report_to",
            "dry_run",
            "device_memory_gb",
            "teacher_scores",
            "teacher",
        }
        return self.model_dump(mode="json", exclude=without)
