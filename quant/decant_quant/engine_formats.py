"""Which files each engine loads, as data: what it does not is refused before any work.

vLLM's are those that version 0.32 loaded or refused when it was given them, on a CPU.
"""

from collections.abc import Mapping
from typing import Literal

from decant_quant.quantize_config import Engine, QuantizeConfig

Kind = Literal["gguf", "gptq", "awq", "compressed-tensors", "int8", "fp8", "bnb", "plain"]

_KINDS: Mapping[str, Kind] = {
    "gguf": "gguf",
    "gptq": "gptq",
    "awq": "awq",
    "w8a8": "int8",
    "fp8": "fp8",
    "gptqmodel": "gptq",
    "autoround": "gptq",
    "bnb": "bnb",
    "hf": "plain",
    "dequantize": "plain",
    "llmcompressor:W4A16": "compressed-tensors",
    "llmcompressor:W8A8": "int8",
    "llmcompressor:FP8": "fp8",
}
_ENGINE_KINDS: Mapping[Engine, tuple[Kind, ...]] = {
    "llamacpp": ("gguf",),
    "vllm": ("gptq", "awq", "compressed-tensors", "int8", "fp8", "plain"),
    "transformers": ("gptq", "awq", "compressed-tensors", "int8", "fp8", "bnb", "plain"),
}
# What transformers loads a kind with.
PACKAGES: Mapping[Kind, tuple[str, ...]] = {
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
    "compressed-tensors": ("compressed_tensors",),
    "int8": ("compressed_tensors",),
    "fp8": ("compressed_tensors",),
    "bnb": ("bitsandbytes",),
}
VLLM_CPU: Mapping[Kind, str] = {
    "int8": "vLLM's CPU build has no kernel for W8A8",
    "fp8": "vLLM's CPU build computes float8 in float32 only, slower than 16 bits",
}
VLLM_CPU_BITS = "vLLM's CPU build loads codes of 4 bits only"


def kind_of(method: str, layout: str | None) -> Kind:
    """The kind of file that a method writes in this layout (None: its own)."""
    if layout == "compressed-tensors" and method in ("gptq", "awq"):
        return "compressed-tensors"
    if layout in ("gptq", "awq") and method in ("gptq", "awq"):
        return "gptq" if layout == "gptq" else "awq"
    return _KINDS.get(method) or _KINDS[method.partition(":")[0]]


def refusal(engine: Engine, config: QuantizeConfig) -> str | None:
    """Why the engine does not load what the config would make; None when it does."""
    kind = kind_of(config.method, config.layout)
    if kind not in _ENGINE_KINDS[engine]:
        return f"{engine} does not load what {config.method} writes"
    if engine != "vllm" or config.load.device != "cpu":
        return None
    if kind in VLLM_CPU:
        return VLLM_CPU[kind]
    if kind in ("gptq", "compressed-tensors") and config.method != "awq":
        if config.gptq.bits != 4:
            return VLLM_CPU_BITS
        if kind == "gptq" and not config.gptq.sym:
            return "vLLM's CPU build loads GPTQ with sym = true only; write it with --layout awq"
    return None
