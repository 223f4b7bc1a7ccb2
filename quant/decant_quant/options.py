"""What the methods that calibrate can be told: the `gptq` and `calibration` tables of `decant quantize`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field

from decant.config import Config, OptionalInputPath

Layout = Literal["gptq", "awq", "compressed-tensors"]
"""How codes lie in a checkpoint."""


class GptqConfig(Config):
    """The grid of a GPTQ checkpoint and how its codes are found."""

    bits: Literal[2, 3, 4, 8] = Field(default=4, description="bits per weight")
    group_size: Literal[-1, 32, 64, 128, 256] = Field(
        default=128, description="input columns that share a scale; -1: all of them"
    )
    act_order: bool = Field(
        default=True, description="solve the columns with the largest inputs first; groups stay in place"
    )
    sym: bool = Field(default=True, description="one zero point in the middle, which every engine loads")
    damping: float = Field(
        default=0.01, gt=0, lt=1, description="part of the Hessian's mean diagonal that is added to it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where to compute; auto: a GPU if there is one"
    )


class AwqConfig(Config):
    """The grid of the awq method; its codes have 4 bits."""

    group_size: Literal[32, 64, 128] = Field(default=128, description="input columns that share a scale")
    sym: bool = Field(default=False, description="one zero point in the middle instead of one per group")


class W8a8Config(Config):
    """How the w8a8 method shares the rounding between weights and activations."""

    smoothing: float = Field(
        default=0.5, ge=0, lt=1, description="how much of the inputs' spread moves into the weights; 0: none"
    )


class GgufConfig(Config):
    """What the block formats of GGUF weigh their errors by."""

    importance: Literal["auto", "off"] = Field(
        default="auto",
        description="weigh each column's error by what calibration rows send through it, where there are any",
    )
    imatrix: OptionalInputPath = Field(
        default=None, description="importance matrix in llama.cpp's GGUF format, instead of calibration rows"
    )


class CalibrationConfig(Config):
    """The rows that a method calibrates on, and the held-out ones that its loss is measured on."""

    dataset: OptionalInputPath = Field(
        default=None, description="JSONL rows (messages, prompt + completion, or text) or a .txt file"
    )
    heldout: OptionalInputPath = Field(
        default=None, description="rows to measure on; when left out, rows of the dataset that were not used"
    )
    rows: int = Field(default=128, ge=1, description="rows to calibrate on")
    heldout_rows: int = Field(default=32, ge=1, description="rows to measure on")
    max_tokens: int = Field(
        default=512, ge=2, description="longest row, in tokens; the window of a text file"
    )
    skip_long: bool = Field(default=False, description="leave longer rows out instead of refusing them")
    seed: int = Field(default=0, description="same seed, same rows")

    @property
    def measures(self) -> bool:
        """Whether there are rows, on which the model is run layer by layer."""
        return self.dataset is not None or self.heldout is not None


class SpeedConfig(Config):
    """How `--speed` times an artifact in its engine."""

    engine: Literal["auto", "llamacpp", "transformers", "vllm"] = Field(
        default="auto", description="what runs it; auto: the engine of its kind, or that of --for"
    )
    requests: int = Field(default=8, ge=2, description="requests timed, one after the other")
    prompt_tokens: int = Field(default=128, ge=1, description="random tokens of each prompt")
    output_tokens: int = Field(default=32, ge=2, description="most tokens of each answer")
    threads: int | None = Field(default=None, ge=1, description="engine threads; as for the trial if not set")
    timeout_s: float = Field(default=120.0, gt=0, description="longest wait for one answer")


class RecoverConfig(Config):
    """How `--recover` trains the scales of a quantized model."""

    epochs: int = Field(default=8, ge=1, description="passes over the calibration rows")
    learning_rate: float = Field(
        default=1e-3, gt=0, le=0.1, description="largest step of a scale's relative change, falling to zero"
    )
    batch_tokens: int = Field(default=2048, ge=1, description="calibration tokens per step, about")


@dataclass(frozen=True, slots=True)
class Options:
    """What a method may need beside the model: its tables, the layout of its files (None: its own), a folder
    to resume from (None: no resume), how to recover (None: not at all), another interpreter (None: this one),
    and whether token ids are compared in the engine before weights are written.
    """

    gptq: GptqConfig = field(default_factory=GptqConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    progress_folder: Path | None = None
    recovery: RecoverConfig | None = None
    python: Path | None = None
    awq: AwqConfig = field(default_factory=AwqConfig)
    w8a8: W8a8Config = field(default_factory=W8a8Config)
    layout: Layout | None = None
    gguf: GgufConfig = field(default_factory=GgufConfig)
    compare_tokens: bool = False
