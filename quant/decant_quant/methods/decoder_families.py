"""Model families as data: which linears of a decoder layer share an input, and which one ends a block.

A layer is a row of blocks, each `hidden + output(mix(inputs(norm(hidden))))`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from decant.errors import QuantizeError
from decant_quant.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Block:
    """One residual block: names of modules in a layer. `takes_positions`: it is attention."""

    norm: str
    module: str
    inputs: tuple[str, ...]
    output: str
    takes_positions: bool


@dataclass(frozen=True, slots=True)
class Family:
    """The blocks of a decoder layer, in order."""

    blocks: tuple[Block, ...]

    def linears(self) -> tuple[str, ...]:
        """The linears that are quantized, as `module.linear`, in the order they are solved in."""
        return tuple(f"{b.module}.{name}" for b in self.blocks for name in (*b.inputs, b.output))


_GATED = Family(
    (
        Block("input_layernorm", "self_attn", ("q_proj", "k_proj", "v_proj"), "o_proj", takes_positions=True),
        Block(
            "post_attention_layernorm", "mlp", ("gate_proj", "up_proj"), "down_proj", takes_positions=False
        ),
    )
)

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": _GATED,
    "MistralForCausalLM": _GATED,
    "Qwen2ForCausalLM": _GATED,
    "Qwen3ForCausalLM": _GATED,
}


def family_of(checkpoint: Checkpoint) -> Family:
    """The checkpoint's family; QuantizeError names those there are."""
    name = checkpoint.architecture
    if name not in FAMILIES:
        raise QuantizeError(
            f"{checkpoint.folder}: architecture {name} cannot be quantized with gptq yet"
            f" (known: {', '.join(FAMILIES)}); try a gguf method"
        )
    return FAMILIES[name]
