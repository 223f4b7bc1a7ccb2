"""What each engine loads, and what it needs in memory, as data.

vLLM's formats are those that version 0.32 loaded or refused when it was given them, on a CPU.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from decant.errors import QuantizeError
from decant_quant.checkpoint import Checkpoint
from decant_quant.engine_formats import PACKAGES, VLLM_CPU, VLLM_CPU_BITS, kind_of, refusal
from decant_quant.quantize_config import Engine, LoadConfig, QuantizeConfig

_F16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to quantize: a method with its settings. `packages` are what the engine needs to load it."""

    name: str
    method: str
    bits: float
    gptq: Mapping[str, Any] = field(default_factory=dict[str, Any])
    packages: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    """By device: why the engine does not load it there."""

    def refusal(self, device: str) -> str | None:
        """Why the engine cannot load it here; None when it can."""
        if device in self.refused:
            return self.refused[device]
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            needed, lacking = " and ".join(self.packages), " and ".join(missing)
            return f"the engine loads it with {needed}: {lacking} not installed"
        return None


@dataclass(frozen=True, slots=True)
class Target:
    """An engine: its candidates and what it takes itself, in bytes, beside weights and cache."""

    candidates: tuple[Candidate, ...]
    overhead_bytes: int
    overhead_source: str


_GPTQ_PACKAGES = PACKAGES["gptq"]

TARGETS: Mapping[Engine, Target] = {
    "llamacpp": Target(
        (
            Candidate("gguf:IQ4_XS", "gguf:IQ4_XS", 4.3),
            Candidate("gguf:Q4_0", "gguf:Q4_0", 4.5),
            Candidate("gguf:Q4_K_M", "gguf:Q4_K_M", 4.8),
            Candidate("gguf:Q5_K_M", "gguf:Q5_K_M", 5.7),
            Candidate("gguf:Q6_K", "gguf:Q6_K", 6.6),
            Candidate("gguf:Q8_0", "gguf:Q8_0", 8.5),
            Candidate("gguf:F16", "gguf:F16", 16.0),
        ),
        200_000_000,
        "0.13 GB measured with a model of 1 MB, rounded up",
    ),
    "vllm": Target(
        (
            Candidate("gptq, 4 bits", "gptq", 4.1, {"bits": 4, "sym": True}),
            Candidate("w8a8", "w8a8", 8.1, refused={"cpu": VLLM_CPU["int8"]}),
            Candidate("fp8", "fp8", 8.1, refused={"cpu": VLLM_CPU["fp8"]}),
            Candidate("gptq, 8 bits", "gptq", 8.1, {"bits": 8, "sym": True}, refused={"cpu": VLLM_CPU_BITS}),
            Candidate("hf:F16", "hf:F16", 16.0),
        ),
        2_500_000_000,
        "assumed, not measured here",
    ),
    "transformers": Target(
        (
            Candidate("gptq, 4 bits", "gptq", 4.1, {"bits": 4, "sym": True}, packages=_GPTQ_PACKAGES),
            Candidate("gptq, 8 bits", "gptq", 8.1, {"bits": 8, "sym": True}, packages=_GPTQ_PACKAGES),
            Candidate("bnb:NF4", "bnb:NF4", 4.5, packages=("bitsandbytes",)),
            Candidate("bnb:INT8", "bnb:INT8", 8.1, packages=("bitsandbytes",)),
            Candidate("hf:BF16", "hf:BF16", 16.0),
        ),
        700_000_000,
        "assumed, not measured here",
    ),
}


def candidates(engine: Engine, config: QuantizeConfig) -> tuple[Candidate, ...]:
    """What may be tried for the engine: its table or, where the method was named, that alone."""
    if "method" not in config.model_fields_set:
        return TARGETS[engine].candidates
    reason = refusal(engine, config)
    refused = {} if reason is None else {config.load.device: reason}
    packages = PACKAGES.get(kind_of(config.method, config.layout), ()) if engine == "transformers" else ()
    return (Candidate(config.method, config.method, 0.0, packages=packages, refused=refused),)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that an artifact takes while it is served, by part; an estimate from its config."""

    weights: int
    cache: int
    engine: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.engine


def context_of(checkpoint: Checkpoint, load: LoadConfig) -> int:
    """Tokens per request; QuantizeError for more than the model has positions."""
    longest = checkpoint.integer("max_position_embeddings")
    if load.context is not None and load.context > longest:
        raise QuantizeError(
            f"load.context is {load.context}, but {checkpoint.folder} has {longest} positions; lower it"
        )
    return load.context or longest


def cache_bytes(checkpoint: Checkpoint, *, tokens: int) -> int:
    """Keys and values of so many tokens in 16 bits, every layer; windows and sharing only make it less."""
    heads = checkpoint.integer("num_attention_heads")
    kv_heads = checkpoint.integer("num_key_value_heads", default=heads)
    head = checkpoint.integer("head_dim", default=checkpoint.integer("hidden_size") // heads)
    return 2 * checkpoint.integer("num_hidden_layers") * kv_heads * head * _F16_BYTES * tokens


def footprint(target: Target, checkpoint: Checkpoint, load: LoadConfig, *, weights: int) -> Footprint:
    """What serving takes with the cache full: every request as long as the context allows."""
    tokens = context_of(checkpoint, load) * load.concurrency
    return Footprint(weights, cache_bytes(checkpoint, tokens=tokens), target.overhead_bytes)


def largest_group(inputs: Sequence[int]) -> int | None:
    """The largest group size up to 128 that divides every linear's inputs."""
    return next((size for size in (128, 64, 32) if all(count % size == 0 for count in inputs)), None)
