"""Model families as data: which linears of a decoder layer share an input, and which one ends a block.

A layer is a row of blocks, each `hidden + end_norm(output(mix(inputs(norm(hidden)))))`;
most have no end norm.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from decant.errors import QuantizeError
from decant_quant.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Block:
    """One residual block: names of modules in a layer. `takes_positions`: it is attention.

    `feeder` is the linear whose last rows become, channel by channel, the inputs of the output linear: it has
    `feeder_parts` times as many rows. `end_norm` is applied to what the output linear gives, before it is
    added.
    """

    norm: str
    module: str
    inputs: tuple[str, ...]
    output: str
    takes_positions: bool
    feeder: str
    feeder_parts: int = 1
    end_norm: str | None = None


@dataclass(frozen=True, slots=True)
class RoutedBlock:
    """A residual block whose router sends each token to a few experts: names of modules in a layer.

    Each expert, and the `shared` one that all tokens pass, is output(act(inputs[0]) * inputs[1]). Checkpoints
    call the block's module `stored_as`.
    """

    norm: str
    module: str
    inputs: tuple[str, str]
    output: str
    router: str = "gate"
    experts: str = "experts"
    shared: str | None = None
    stored_as: str | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """The blocks of a decoder layer, in order. `scales_embedding`: by the root of the hidden size.

    `norm_offset` is added to a norm's weight before it is used.
    """

    blocks: tuple[Block | RoutedBlock, ...]
    scales_embedding: bool = False
    norm_offset: float = 0.0

    @property
    def routed(self) -> RoutedBlock | None:
        """The block with the experts, if the family has one."""
        return next((block for block in self.blocks if isinstance(block, RoutedBlock)), None)

    def linears(self, experts: int = 0) -> tuple[str, ...]:
        """The linears that are quantized, as `module.linear`, in the order they are solved in."""
        return tuple(
            f"{part}.{name}"
            for block in self.blocks
            for part in _parts(block, experts)
            for name in (*block.inputs, block.output)
        )

    def stored(self, name: str) -> str:
        """A tensor's name in the checkpoint, less its layer, by its name in the layer."""
        block = self.routed
        if block is None or block.stored_as is None:
            return name
        return name.replace(f"{block.module}.", f"{block.stored_as}.", 1)


def _parts(block: Block | RoutedBlock, experts: int) -> list[str]:
    if isinstance(block, Block):
        return [block.module]
    shared = [] if block.shared is None else [f"{block.module}.{block.shared}"]
    return [*shared, *(f"{block.module}.{block.experts}.{number}" for number in range(experts))]


_GATED = Family(
    (
        Block(
            "input_layernorm",
            "self_attn",
            ("q_proj", "k_proj", "v_proj"),
            "o_proj",
            takes_positions=True,
            feeder="v_proj",
        ),
        Block(
            "post_attention_layernorm",
            "mlp",
            ("gate_proj", "up_proj"),
            "down_proj",
            takes_positions=False,
            feeder="up_proj",
        ),
    )
)

_ATTENTION = _GATED.blocks[0]
_NORM = "post_attention_layernorm"
_MIXTRAL = Family((_ATTENTION, RoutedBlock(_NORM, "mlp", ("w1", "w3"), "w2", stored_as="block_sparse_moe")))
_QWEN_MOE = Family((_ATTENTION, RoutedBlock(_NORM, "mlp", ("gate_proj", "up_proj"), "down_proj")))
_QWEN_MOE_SHARED = Family(
    (
        _ATTENTION,
        RoutedBlock(_NORM, "mlp", ("gate_proj", "up_proj"), "down_proj", shared="shared_expert"),
    )
)
_FUSED = Family(
    (
        Block(
            "input_layernorm",
            "self_attn",
            ("qkv_proj",),
            "o_proj",
            takes_positions=True,
            feeder="qkv_proj",
            feeder_parts=3,
        ),
        Block(
            "post_attention_layernorm",
            "mlp",
            ("gate_up_proj",),
            "down_proj",
            takes_positions=False,
            feeder="gate_up_proj",
            feeder_parts=2,
        ),
    )
)
_NORMED_ENDS = Family(
    (
        Block(
            "input_layernorm",
            "self_attn",
            ("q_proj", "k_proj", "v_proj"),
            "o_proj",
            takes_positions=True,
            feeder="v_proj",
            end_norm="post_attention_layernorm",
        ),
        Block(
            "pre_feedforward_layernorm",
            "mlp",
            ("gate_proj", "up_proj"),
            "down_proj",
            takes_positions=False,
            feeder="up_proj",
            end_norm="post_feedforward_layernorm",
        ),
    ),
    scales_embedding=True,
    norm_offset=1.0,
)

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": _GATED,
    "MistralForCausalLM": _GATED,
    "Qwen2ForCausalLM": _GATED,
    "Qwen3ForCausalLM": _GATED,
    "MixtralForCausalLM": _MIXTRAL,
    "Qwen2MoeForCausalLM": _QWEN_MOE_SHARED,
    "Qwen3MoeForCausalLM": _QWEN_MOE,
    "Phi3ForCausalLM": _FUSED,
    "Gemma2ForCausalLM": _NORMED_ENDS,
    "Gemma3ForCausalLM": _NORMED_ENDS,
}


def family_of(checkpoint: Checkpoint) -> Family:
    """The checkpoint's family; QuantizeError names those there are."""
    name = checkpoint.architecture
    if name not in FAMILIES:
        raise QuantizeError(
            f"{checkpoint.folder}: architecture {name} cannot be run layer by layer yet, as gptq and"
            f" measuring need (known: {', '.join(FAMILIES)}); try gguf, without rows"
        )
    return FAMILIES[name]
