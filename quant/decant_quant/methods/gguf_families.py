"""Model families as data: which tensors a checkpoint must hold, and how GGUF names and orders them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decant.errors import QuantizeError
from decant_quant.checkpoint import Checkpoint, StoredTensor

Axis = Literal["hidden", "intermediate", "queries", "keys", "head"]

_BLOCK: Mapping[str, tuple[Axis, ...]] = {
    "input_layernorm.weight": ("hidden",),
    "self_attn.q_proj.weight": ("queries", "hidden"),
    "self_attn.k_proj.weight": ("keys", "hidden"),
    "self_attn.v_proj.weight": ("keys", "hidden"),
    "self_attn.o_proj.weight": ("hidden", "queries"),
    "post_attention_layernorm.weight": ("hidden",),
    "mlp.gate_proj.weight": ("intermediate", "hidden"),
    "mlp.up_proj.weight": ("intermediate", "hidden"),
    "mlp.down_proj.weight": ("hidden", "intermediate"),
}
_QKV_BIAS: Mapping[str, tuple[Axis, ...]] = {
    "self_attn.q_proj.bias": ("queries",),
    "self_attn.k_proj.bias": ("keys",),
    "self_attn.v_proj.bias": ("keys",),
}
_OTHER_BIAS: Mapping[str, tuple[Axis, ...]] = {
    "self_attn.o_proj.bias": ("hidden",),
    "mlp.gate_proj.bias": ("intermediate",),
    "mlp.up_proj.bias": ("intermediate",),
    "mlp.down_proj.bias": ("hidden",),
}
_QK_NORM: Mapping[str, tuple[Axis, ...]] = {
    "self_attn.q_norm.weight": ("head",),
    "self_attn.k_norm.weight": ("head",),
}

# Buffers of old checkpoints that follow from the config.
_DERIVED = ".rotary_emb.inv_freq"


@dataclass(frozen=True, slots=True)
class Family:
    """What tells one architecture's checkpoints from another's.

    `paired_rope`: the engine's graph for `arch` rotates neighbouring channels (2i, 2i+1) where transformers
    rotates the halves (i, i + d/2), so rows of q and k change places. `windowed`: an attention window named
    in the config is in force unless the config says otherwise.
    """

    arch: str
    required: Mapping[str, tuple[Axis, ...]]
    optional: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict[str, tuple[Axis, ...]])
    paired_rope: bool = False
    windowed: bool = False


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(
        "llama", required=_BLOCK, optional={**_QKV_BIAS, **_OTHER_BIAS}, paired_rope=True
    ),
    "MistralForCausalLM": Family("llama", required=_BLOCK, paired_rope=True, windowed=True),
    "Qwen2ForCausalLM": Family("qwen2", required={**_BLOCK, **_QKV_BIAS}),
    "Qwen3ForCausalLM": Family("qwen3", required={**_BLOCK, **_QK_NORM}),
}


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes in a config.json; `context` is the longest sequence that the engine may be given."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    context: int
    rms_eps: float

    def axis(self, name: Axis) -> int:
        """The length of a tensor's axis."""
        lengths = {"queries": self.heads * self.head, "keys": self.kv_heads * self.head, "head": self.head}
        return lengths.get(name) or {"hidden": self.hidden, "intermediate": self.intermediate}[name]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the GGUF file: its source, its name there, and its rows' new order, if it changes."""

    source: StoredTensor
    name: str
    row_order: NDArray[np.intp] | None

    @property
    def is_matrix(self) -> bool:
        """Whether it is a weight matrix: norms and biases are vectors and stay in 32 bits."""
        return len(self.source.shape) == 2

    @property
    def is_end(self) -> bool:
        """Whether it is the embedding or the output head."""
        return self.name in ("token_embd.weight", "output.weight")


def family_of(checkpoint: Checkpoint) -> Family:
    """The checkpoint's family; QuantizeError names the supported ones when it is none of them."""
    name = checkpoint.architecture
    if name not in FAMILIES:
        raise QuantizeError(
            f"{checkpoint.folder}: architecture {name} cannot be written as GGUF here;"
            f" supported are {', '.join(FAMILIES)}"
        )
    activation = checkpoint.config.get("hidden_act", "silu")
    if activation != "silu":
        raise QuantizeError(
            f"{checkpoint.folder}: hidden_act is {activation}, but llama.cpp computes {name} with silu;"
            f" serve it with `--engine transformers`"
        )
    return FAMILIES[name]


def dimensions(checkpoint: Checkpoint, family: Family) -> tuple[Dimensions, tuple[str, ...]]:
    """The model's sizes, and a note when an attention window cuts the context short."""
    heads, hidden = checkpoint.integer("num_attention_heads"), checkpoint.integer("hidden_size")
    context = checkpoint.integer("max_position_embeddings")
    window = checkpoint.config.get("sliding_window")
    notes: tuple[str, ...] = ()
    if window and checkpoint.config.get("use_sliding_window", family.windowed) and window < context:
        notes = (
            f"context cut from {context} to the attention window of {window}, which llama.cpp lacks here",
        )
        context = int(window)
    sizes = Dimensions(
        vocabulary=checkpoint.integer("vocab_size"),
        hidden=hidden,
        intermediate=checkpoint.integer("intermediate_size"),
        layers=checkpoint.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=checkpoint.integer("num_key_value_heads", default=heads),
        head=checkpoint.integer("head_dim", default=hidden // heads),
        context=context,
        rms_eps=checkpoint.number("rms_norm_eps", default=1e-6),
    )
    return sizes, notes


def plan_tensors(checkpoint: Checkpoint, family: Family, sizes: Dimensions) -> list[PlannedTensor]:
    """Every tensor to write, in file order; QuantizeError for a missing, unknown or misshapen one."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH(_arch_number(family.arch)), sizes.layers)
    expected = _expected_shapes(checkpoint, family, sizes)
    _refuse_unknown(checkpoint, expected)
    planned: list[PlannedTensor] = []
    for source_name, shape in expected.items():
        source = checkpoint.tensors.get(source_name)
        if source is None:
            continue
        if source.shape != shape:
            raise QuantizeError(
                f"{source.file}: {source_name} has shape {list(source.shape)}, by config.json"
                f" {list(shape)}; copy the folder again"
            )
        name = names.get_name(source_name, try_suffixes=(".weight", ".bias"))
        assert name, f"the gguf package has no name for {source_name}"
        planned.append(PlannedTensor(source, name, _row_order(source_name, family, sizes)))
    return planned


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the embedding is the output head too."""
    return bool(checkpoint.config.get("tie_word_embeddings", "lm_head.weight" not in checkpoint.tensors))


def _expected_shapes(checkpoint: Checkpoint, family: Family, sizes: Dimensions) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (sizes.vocabulary, sizes.hidden)}
    optional: set[str] = set()
    for layer in range(sizes.layers):
        for suffix, axes in {**family.required, **family.optional}.items():
            name = f"model.layers.{layer}.{suffix}"
            shapes[name] = tuple(sizes.axis(axis) for axis in axes)
            optional |= {name} if suffix in family.optional else set()
    shapes["model.norm.weight"] = (sizes.hidden,)
    if not is_tied(checkpoint):
        shapes["lm_head.weight"] = (sizes.vocabulary, sizes.hidden)
    missing = [name for name in shapes if name not in checkpoint.tensors and name not in optional]
    if missing:
        raise QuantizeError(
            f"{checkpoint.folder}: lacks {len(missing)} tensors, {missing[0]} first; copy it again"
        )
    return shapes


def _refuse_unknown(checkpoint: Checkpoint, expected: Mapping[str, Any]) -> None:
    known = {*expected, "lm_head.weight"}
    unknown = [n for n in checkpoint.tensors if n not in known and not n.endswith(_DERIVED)]
    if unknown:
        raise QuantizeError(
            f"{checkpoint.folder}: {len(unknown)} tensors are unknown to {checkpoint.architecture},"
            f" {unknown[0]} first; save the plain causal language model, adapters merged"
        )


def _row_order(source_name: str, family: Family, sizes: Dimensions) -> NDArray[np.intp] | None:
    """Rows of q and k as the engine pairs them: within a head, (i, i + d/2) becomes (2i, 2i + 1)."""
    projection = source_name.split(".")[-2]
    if not family.paired_rope or projection not in ("q_proj", "k_proj"):
        return None
    heads = sizes.heads if projection == "q_proj" else sizes.kv_heads
    return np.arange(heads * sizes.head).reshape(heads, 2, sizes.head // 2).swapaxes(1, 2).reshape(-1)


def _arch_number(arch: str) -> int:
    import gguf

    return next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
