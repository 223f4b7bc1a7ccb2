"""Model families as data: which tensors a checkpoint must hold, and how GGUF names and orders them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decant.errors import QuantizeError
from decant_quant.checkpoint import Checkpoint, StoredTensor

Axis = Literal[
    "hidden", "intermediate", "queries", "keys", "head", "experts", "expert width", "shared width", "one"
]

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

_ATTENTION = {name: axes for name, axes in _BLOCK.items() if not name.startswith("mlp.")}
# `*` is the number of an expert: GGUF holds a layer's experts as one tensor.
_MIXTRAL_EXPERTS: Mapping[str, tuple[Axis, ...]] = {
    "block_sparse_moe.experts.*.w1.weight": ("intermediate", "hidden"),
    "block_sparse_moe.experts.*.w2.weight": ("hidden", "intermediate"),
    "block_sparse_moe.experts.*.w3.weight": ("intermediate", "hidden"),
}
_QWEN_EXPERTS: Mapping[str, tuple[Axis, ...]] = {
    "mlp.experts.*.gate_proj.weight": ("expert width", "hidden"),
    "mlp.experts.*.up_proj.weight": ("expert width", "hidden"),
    "mlp.experts.*.down_proj.weight": ("hidden", "expert width"),
}
_SHARED_EXPERT: Mapping[str, tuple[Axis, ...]] = {
    "mlp.shared_expert.gate_proj.weight": ("shared width", "hidden"),
    "mlp.shared_expert.up_proj.weight": ("shared width", "hidden"),
    "mlp.shared_expert.down_proj.weight": ("hidden", "shared width"),
    "mlp.shared_expert_gate.weight": ("one", "hidden"),
}
_EVERY_LAYER: Mapping[str, Any] = {"decoder_sparse_step": 1, "mlp_only_layers": []}

# Buffers of old checkpoints that follow from the config.
_DERIVED = ".rotary_emb.inv_freq"


@dataclass(frozen=True, slots=True)
class Family:
    """What tells one architecture's checkpoints from another's.

    `paired_rope`: the engine's graph for `arch` rotates neighbouring channels (2i, 2i+1) where transformers
    rotates the halves (i, i + d/2), so rows of q and k change places. `windowed`: an attention window named
    in the config is in force unless the config says otherwise. `has_experts`: in every layer. `fixed`:
    settings that the engine's graph takes for granted; `defaults`: those of transformers where config.json
    is silent.
    """

    arch: str
    required: Mapping[str, tuple[Axis, ...]]
    optional: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict[str, tuple[Axis, ...]])
    paired_rope: bool = False
    windowed: bool = False
    has_experts: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(
        "llama", required=_BLOCK, optional={**_QKV_BIAS, **_OTHER_BIAS}, paired_rope=True
    ),
    "MistralForCausalLM": Family("llama", required=_BLOCK, paired_rope=True, windowed=True),
    "Qwen2ForCausalLM": Family("qwen2", required={**_BLOCK, **_QKV_BIAS}),
    "Qwen3ForCausalLM": Family("qwen3", required={**_BLOCK, **_QK_NORM}),
    "MixtralForCausalLM": Family(
        "llama",
        required={**_ATTENTION, "block_sparse_moe.gate.weight": ("experts", "hidden"), **_MIXTRAL_EXPERTS},
        paired_rope=True,
        windowed=True,
        has_experts=True,
    ),
    "Qwen2MoeForCausalLM": Family(
        "qwen2moe",
        required={
            **_ATTENTION,
            **_QKV_BIAS,
            "mlp.gate.weight": ("experts", "hidden"),
            **_QWEN_EXPERTS,
            **_SHARED_EXPERT,
        },
        has_experts=True,
        fixed={"norm_topk_prob": False, **_EVERY_LAYER},
        defaults={"norm_topk_prob": False, **_EVERY_LAYER},
    ),
    "Qwen3MoeForCausalLM": Family(
        "qwen3moe",
        required={**_ATTENTION, **_QK_NORM, "mlp.gate.weight": ("experts", "hidden"), **_QWEN_EXPERTS},
        has_experts=True,
        fixed={"norm_topk_prob": True, **_EVERY_LAYER},
        defaults={"norm_topk_prob": False, **_EVERY_LAYER},
    ),
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
    experts: int = 0
    experts_used: int = 0
    expert_width: int = 0
    shared_width: int = 0

    def axis(self, name: Axis) -> int:
        """The length of a tensor's axis."""
        lengths: Mapping[Axis, int] = {
            "hidden": self.hidden,
            "intermediate": self.intermediate,
            "queries": self.heads * self.head,
            "keys": self.kv_heads * self.head,
            "head": self.head,
            "experts": self.experts,
            "expert width": self.expert_width,
            "shared width": self.shared_width,
            "one": 1,
        }
        return lengths[name]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the GGUF file: its name there, where it comes from (a layer's experts are `stacked`), and
    its rows' new order, if it changes.
    """

    sources: tuple[StoredTensor, ...]
    name: str
    row_order: NDArray[np.intp] | None
    stacked: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, experts first."""
        shape = self.sources[0].shape
        return (len(self.sources), *shape) if self.stacked else shape

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix to quantize: norms, biases and the experts' routers stay in 32 bits."""
        return len(self.shape) > 1 and "ffn_gate_inp" not in self.name

    @property
    def is_embedding(self) -> bool:
        """Whether it is the embedding."""
        return self.name == "token_embd.weight"

    @property
    def is_head(self) -> bool:
        """Whether it is an output head of its own."""
        return self.name == "output.weight"

    @property
    def layer(self) -> int:
        """The layer it lies in; 0 for those outside."""
        return int(self.name.split(".")[1]) if self.name.startswith("blk.") else 0

    @property
    def kind(self) -> str | None:
        """What it does within its layer, experts or not: `attn_v`, `ffn_down`."""
        if not self.name.startswith("blk."):
            return None
        return self.name.split(".")[2].removesuffix("_exps").removesuffix("_shexp")


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
    family = FAMILIES[name]
    for key, value in family.fixed.items():
        asked = checkpoint.config.get(key, family.defaults[key])
        if asked != value:
            raise QuantizeError(
                f"{checkpoint.folder}: {key} is {asked}, but llama.cpp computes {name} with {value};"
                f" serve it with `--engine transformers`"
            )
    return family


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
        **_experts(checkpoint, family),
    )
    return sizes, notes


def _experts(checkpoint: Checkpoint, family: Family) -> dict[str, int]:
    if not family.has_experts:
        return {}
    # transformers 5 writes the one name for every family, earlier releases the family's own.
    key = "num_experts" if "num_experts" in checkpoint.config else "num_local_experts"
    return {
        "experts": checkpoint.integer(key),
        "experts_used": checkpoint.integer("num_experts_per_tok"),
        "expert_width": checkpoint.integer("moe_intermediate_size", default=0),
        "shared_width": checkpoint.integer("shared_expert_intermediate_size", default=0),
    }


def plan_tensors(checkpoint: Checkpoint, family: Family, sizes: Dimensions) -> list[PlannedTensor]:
    """Every tensor to write, in file order; QuantizeError for a missing, unknown or misshapen one."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH(_arch_number(family.arch)), sizes.layers)
    expected = _expected_shapes(checkpoint, family, sizes)
    sources = {pattern: _numbered(pattern, sizes) for pattern in expected}
    _refuse_unknown(checkpoint, [name for found in sources.values() for name in found])
    planned: list[PlannedTensor] = []
    for pattern, shape in expected.items():
        found = [checkpoint.tensors[name] for name in sources[pattern] if name in checkpoint.tensors]
        odd = next((source for source in found if source.shape != shape), None)
        if odd is not None:
            raise QuantizeError(
                f"{odd.file}: {odd.name} has shape {list(odd.shape)}, by config.json"
                f" {list(shape)}; copy the folder again"
            )
        if found:
            merged = pattern.replace(".*.", ".")
            name = names.get_name(merged, try_suffixes=(".weight", ".bias"))
            assert name, f"the gguf package has no name for {merged}"
            order = _row_order(pattern, family, sizes)
            planned.append(PlannedTensor(tuple(found), name, order, stacked=merged != pattern))
    return planned


def _numbered(pattern: str, sizes: Dimensions) -> list[str]:
    """The names in the checkpoint that one tensor of the file is made from."""
    if ".*." not in pattern:
        return [pattern]
    return [pattern.replace(".*.", f".{expert}.") for expert in range(sizes.experts)]


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
    needed = [name for pattern in shapes if pattern not in optional for name in _numbered(pattern, sizes)]
    missing = [name for name in needed if name not in checkpoint.tensors]
    if missing:
        raise QuantizeError(
            f"{checkpoint.folder}: lacks {len(missing)} tensors, {missing[0]} first; copy it again"
        )
    return shapes


def _refuse_unknown(checkpoint: Checkpoint, expected: Sequence[str]) -> None:
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
