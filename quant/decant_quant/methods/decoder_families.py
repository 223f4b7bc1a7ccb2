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
class Family:
    """The blocks of a decoder layer, in order. `scales_embedding`: by the root of the hidden size.

    `norm_offset` is added to a norm's weight before it is used.
    """

    blocks: tuple[Block, ...]
    scales_embedding: bool = False
    norm_offset: float = 0.0

    def linears(self) -> tuple[str, ...]:
        """The linears that are quantized, as `module.linear`, in the order they are solved in."""
        return tuple(f"{b.module}.{name}" for b in self.blocks for name in (*b.inputs, b.output))


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
