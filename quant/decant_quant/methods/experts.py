# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Sparse layers with each expert a module of its own, as checkpoints store them.

transformers fuses the experts of a layer into one tensor when it loads them; here each is loaded, run and
quantized by itself. Shapes: N tokens, H hidden channels, K experts per token.
"""

from typing import TYPE_CHECKING, Any

from decant_quant.methods.decoder_families import RoutedBlock

if TYPE_CHECKING:
    from torch import Tensor


def unfuse(layer: Any, block: RoutedBlock) -> None:
    """Puts experts of single linears in the place of a layer's fused ones, on the same device."""
    module = layer.get_submodule(block.module)
    module.add_module(block.experts, _experts(module.get_submodule(block.experts), block))


def routed_tokens(module: Any, block: RoutedBlock, tokens_NH: "Tensor") -> "list[Tensor]":
    """The tokens that each expert is given; all of them for one that no token reaches."""
    import torch

    _, _, chosen_NK = module.get_submodule(block.router)(tokens_NH)
    count: int = module.get_submodule(block.experts).count
    reached = [torch.any(chosen_NK == expert, dim=-1) for expert in range(count)]
    return [tokens_NH[mask] if bool(mask.any()) else tokens_NH for mask in reached]


def inside_expert(expert: Any, block: RoutedBlock, tokens_NH: "Tensor", activation: Any) -> "Tensor":
    """The inputs of an expert's last linear."""
    gate, up = (expert.get_submodule(name) for name in block.inputs)
    return activation(gate(tokens_NH)) * up(tokens_NH)


def _experts(fused: Any, block: RoutedBlock) -> Any:
    import torch

    count, inner, hidden = fused.gate_up_proj.shape
    device = fused.gate_up_proj.device

    class Experts(torch.nn.Module):
        """Experts by number, called as the fused ones are."""

        def __init__(self) -> None:
            super().__init__()
            self.count = count
            self.act_fn = fused.act_fn
            for number in range(count):
                expert = torch.nn.Module()
                for name in block.inputs:
                    expert.add_module(name, torch.nn.Linear(hidden, inner // 2, bias=False, device=device))
                last = torch.nn.Linear(inner // 2, hidden, bias=False, device=device)
                expert.add_module(block.output, last)
                self.add_module(str(number), expert)

        def forward(self, hidden_NH: "Tensor", top_k_index: "Tensor", top_k_weights: "Tensor") -> "Tensor":
            total_NH = torch.zeros_like(hidden_NH)
            for number in range(count):
                token_N, place_N = torch.where(top_k_index == number)
                if not len(token_N):
                    continue
                expert = self.get_submodule(str(number))
                inside = inside_expert(expert, block, hidden_NH[token_N], self.act_fn)
                given = expert.get_submodule(block.output)(inside)
                share = top_k_weights[token_N, place_N, None]
                total_NH = total_NH.index_add(0, token_N, given * share)
            return total_NH

    return Experts().requires_grad_(False)
