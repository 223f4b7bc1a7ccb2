"""What a quantization method offers, and the table of those there are."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from decant.artifact import Kind
from decant.config import nearest
from decant.golden import GoldenReport
from decant_quant.options import Options


@dataclass(frozen=True, slots=True)
class Written:
    """What a method made. `notes` are the things a user should know, one sentence each.

    `golden` is the method's own check of the written files, for formats that `decant serve` has no engine
    for; without it the artifact is tried in its engine.
    """

    kind: Kind
    measurements: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()
    golden: GoldenReport | None = None


class Prepared(Protocol):
    """A checkpoint that was read, checked and planned; writing it is all that is left."""

    @property
    def size_bytes(self) -> int:
        """Bytes that `write` will need on disk, a little more rather than less."""
        ...

    def write(self, folder: Path) -> Written:
        """Writes the artifact's files, but no manifest, into an empty folder."""
        ...

    def done(self) -> None:
        """Called once the artifact is in place: clears what a killed run would have gone on from."""
        ...


class Method(Protocol):
    """One way of making a checkpoint smaller."""

    def prepare(self, model: Path) -> Prepared:
        """Reads a Hugging Face model folder; QuantizeError, before any work, for what it cannot convert."""
        ...


_GGUF = "decant_quant.methods.gguf_method:build"
_GPTQ = "decant_quant.methods.gptq.method:build"
_AWQ = "decant_quant.methods.gptq.method:build_awq"
_W8A8 = "decant_quant.methods.gptq.method:build_w8a8"
_FP8 = "decant_quant.methods.fp8_method:build"
_LLMCOMPRESSOR = "decant_quant.methods.backend_method:build_llmcompressor"
_BNB = "decant_quant.methods.bnb_method:build"
_HF = "decant_quant.methods.hf_method:build"
_DEQUANTIZE = "decant_quant.methods.dequantize:build"

GGUF_VARIANTS = (
    *("F32", "BF16", "F16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"),
    *("Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"),
    *("IQ4_NL", "IQ4_XS", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS"),
    *("IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
)

# name -> "module:factory"; the factory takes the name's part after the colon, and the options.
METHODS: Mapping[str, str] = {
    **{f"gguf:{variant}": _GGUF for variant in GGUF_VARIANTS},
    "gptq": _GPTQ,
    "awq": _AWQ,
    "w8a8": _W8A8,
    "fp8": _FP8,
    "gptqmodel": "decant_quant.methods.backend_method:build_gptqmodel",
    "autoround": "decant_quant.methods.backend_method:build_autoround",
    "llmcompressor:W4A16": _LLMCOMPRESSOR,
    "llmcompressor:W8A8": _LLMCOMPRESSOR,
    "llmcompressor:FP8": _LLMCOMPRESSOR,
    "bnb:NF4": _BNB,
    "bnb:INT8": _BNB,
    "hf:F16": _HF,
    "hf:BF16": _HF,
    "dequantize:F32": _DEQUANTIZE,
    "dequantize:F16": _DEQUANTIZE,
    "dequantize:BF16": _DEQUANTIZE,
}


# Known methods that there is none of here, and why.
_REFUSED: Mapping[str, str] = {
    "exl3": "exl3 is made by ExLlamaV3 on an NVIDIA GPU, which is not wrapped here: take gptq",
}


def check_name(name: str) -> str:
    """The method's name as the table spells it; ValueError offers the nearest one."""
    if name.lower() in _REFUSED:
        raise ValueError(_REFUSED[name.lower()])
    by_lower = {known.lower(): known for known in METHODS}
    if name.lower() not in by_lower:
        raise ValueError(f"no such method: {name}{nearest(name, list(METHODS))}")
    return by_lower[name.lower()]


def build_method(name: str, options: Options | None = None) -> Method:
    """The method behind a name of the table, as `check_name` spells it."""
    module, _, factory = METHODS[name].partition(":")
    make = vars(importlib.import_module(module))[factory]
    method: Method = make(name.partition(":")[2], options or Options())
    return method
