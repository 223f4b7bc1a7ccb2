"""The options of `decant quantize`."""

import re
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from decant.config import Config, InputPath, OptionalInputPath, OutputPath
from decant.task import TaskConfig
from decant_quant.method import check_name
from decant_quant.options import (
    AwqConfig,
    CalibrationConfig,
    GgufConfig,
    GptqConfig,
    Layout,
    RecoverConfig,
    SpeedConfig,
    W8a8Config,
)

Engine = Literal["vllm", "llamacpp", "transformers"]

# Methods whose codes are ours, in groups with scales.
CODED = ("gptq", "awq")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


class LoadConfig(Config):
    """What the engine must hold beside the weights."""

    context: int | None = Field(
        default=None,
        ge=64,
        description="tokens of a request, prompt and answer; the model's own when left out",
    )
    concurrency: int = Field(default=4, ge=1, description="requests decoded at once")
    device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="where the engine runs; vLLM loads more formats on cuda"
    )


class EvaluationConfig(Config):
    """Rows with true answers, on which the artifact and the model it was made from are compared."""

    data: OptionalInputPath = Field(default=None, description="labelled rows (JSONL), as for `decant eval`")
    limit: int | None = Field(default=None, ge=1, description="use only the first rows")
    task: TaskConfig = Field(default=TaskConfig(), description="how a row becomes a request")


class QuantizeConfig(Config):
    """What to quantize, how, and where to."""

    # `for` is a word of Python's: the key and the flag are `for`, the attribute is `for_`.
    model_config = ConfigDict(populate_by_name=True)
    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: InputPath = Field(description="Hugging Face model folder (config.json, safetensors, tokenizer)")
    output: OutputPath = Field(description="artifact folder to write; an older one of ours is replaced")
    method: str = Field(
        default="gguf:Q8_0",
        description="gguf:F32, BF16, F16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S,"
        " Q3_K_L, Q3_K_M, Q3_K_S, Q2_K, IQ4_NL, IQ4_XS, IQ3_M, IQ3_S, IQ3_XS, IQ3_XXS, IQ2_M, IQ2_S, IQ2_XS,"
        " IQ2_XXS, IQ1_M or IQ1_S; gptq; awq; w8a8; fp8; bnb:NF4 or INT8;"
        " gptqmodel, autoround, llmcompressor:W4A16, W8A8 or FP8 (each in the interpreter of --python);"
        " hf:F16 or BF16; dequantize:F32, F16 or BF16 (a quantized folder back to plain weights)",
    )
    layout: Layout | None = Field(
        default=None,
        description="gptq, awq: how the codes lie in the files: gptq, awq or compressed-tensors; the method's"
        " own when left out",
    )
    for_: Engine | None = Field(
        default=None,
        alias="for",
        description="choose the method: the cheapest that this engine loads and the limits below allow; with"
        " --method, try that one only",
    )
    fit: str | None = Field(
        default=None, description="with --for: memory for weights, cache and engine, such as 8GB or 7.5GiB"
    )
    max_loss: str | None = Field(
        default=None,
        description="with --for: what may be lost: 1pt (points of the task's accuracy; of agreement on the"
        " top token where there are no evaluation rows) or 0.01nats (mean KL)",
    )
    load: LoadConfig = Field(default=LoadConfig(), description="with --for: what the engine must hold")
    evaluation: EvaluationConfig = Field(
        default=EvaluationConfig(), description="with --for: rows that the task's accuracy is measured on"
    )
    python: Path | None = Field(
        default=None,
        description="interpreter that has the library of the method: xllamacpp or llama-cpp-python for"
        " gguf:Q6_K and the like, gptqmodel, auto-round or llmcompressor",
    )
    speed: bool = Field(
        default=False, description="then time it in its engine: load, prompt and answer tokens a second"
    )
    timing: SpeedConfig = Field(default=SpeedConfig(), description="how --speed times it")
    engine_python: Path | None = Field(
        default=None,
        description="interpreter with vLLM: the artifact is loaded there and answers its golden prompts"
        " before it counts; what is for vLLM is evaluated and timed there",
    )
    recover: bool = Field(
        default=False,
        description="gptq: then train the scales towards the unquantized model's answers; kept only when"
        " held-out rows say so",
    )
    recovery: RecoverConfig = Field(default=RecoverConfig(), description="how --recover trains")
    gptq: GptqConfig = Field(
        default=GptqConfig(), description="the grid of gptq, gptqmodel, autoround and llmcompressor:W4A16"
    )
    awq: AwqConfig = Field(default=AwqConfig(), description="the grid of awq")
    w8a8: W8a8Config = Field(default=W8a8Config(), description="how w8a8 smooths")
    gguf: GgufConfig = Field(default=GgufConfig(), description="what the gguf types weigh their errors by")
    calibration: CalibrationConfig = Field(
        default=CalibrationConfig(),
        description="the rows to calibrate on, and to measure on (all that quantize)",
    )

    @field_validator("method")
    @classmethod
    def _is_known(cls, value: str) -> str:
        return check_name(value)

    @field_validator("fit")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_bytes(value)
        return value

    @field_validator("max_loss")
    @classmethod
    def _is_a_loss(cls, value: str | None) -> str | None:
        if value is not None:
            parse_loss(value)
        return value

    @model_validator(mode="after")
    def _options_have_a_method(self) -> Self:
        if self.layout is not None and self.method not in CODED and self.for_ is None:
            raise ValueError(f"--layout is for {' and '.join(CODED)}; {self.method} has one layout only")
        if self.recover and self.method not in CODED and self.for_ is None:
            raise ValueError(f"--recover is for {' and '.join(CODED)}, whose scales it trains")
        return self

    @model_validator(mode="after")
    def _plan_is_whole(self) -> Self:
        planned = [
            name for name in ("fit", "max_loss", "evaluation", "load") if name in self.model_fields_set
        ]
        if self.engine_python is not None and planned == ["load"]:
            return self
        if self.for_ is None and planned:
            raise ValueError(f"{planned[0]} is for a plan; name the engine with --for")
        if self.engine_python is not None and self.for_ not in (None, "vllm"):
            raise ValueError("--engine-python names an interpreter with vLLM; --for says another engine")
        return self


def parse_bytes(text: str) -> int:
    """Bytes in `8GB`, `7.5GiB` or `500MB`; ValueError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?)B\s*", text, re.IGNORECASE)
    if found is None or found[2].upper() not in _UNITS:
        raise ValueError("a size is a number with its unit, such as 8GB, 7.5GiB or 500MB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def parse_loss(text: str) -> tuple[float, Literal["pt", "nats"]]:
    """The number and unit of `1pt` or `0.01nats`; ValueError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(pt|nats)\s*", text)
    if found is None:
        raise ValueError(
            "a loss is a number with its unit: 1pt (percentage points of the task's accuracy, or of agreement"
            " on the top token) or 0.01nats (mean KL divergence)"
        )
    return float(found[1]), "pt" if found[2] == "pt" else "nats"
