"""A model's sizes and rope as GGUF metadata."""

from typing import TYPE_CHECKING

from decant_quant.methods.gguf_families import Dimensions
from decant_quant.methods.gguf_rope import Rope

if TYPE_CHECKING:
    import gguf


def add_metadata(writer: "gguf.GGUFWriter", sizes: Dimensions, rope: Rope) -> None:
    """Adds everything that the engine must know of the model beside its tensors and tokenizer."""
    import gguf

    writer.add_type("model")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(sizes.vocabulary)
    writer.add_context_length(sizes.context)
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(sizes.intermediate)
    writer.add_block_count(sizes.layers)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(sizes.head)
    writer.add_value_length(sizes.head)
    writer.add_layer_norm_rms_eps(sizes.rms_eps)
    _add_experts(writer, sizes)
    writer.add_rope_dimension_count(sizes.head)
    writer.add_rope_freq_base(rope.theta)
    if rope.scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope.scaling))
        writer.add_rope_scaling_factor(rope.factor)
    if rope.original_context is not None:
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)


def _add_experts(writer: "gguf.GGUFWriter", sizes: Dimensions) -> None:
    if sizes.experts:
        writer.add_expert_count(sizes.experts)
        writer.add_expert_used_count(sizes.experts_used)
    if sizes.expert_width:
        writer.add_expert_feed_forward_length(sizes.expert_width)
    if sizes.shared_width:
        writer.add_expert_shared_feed_forward_length(sizes.shared_width)
