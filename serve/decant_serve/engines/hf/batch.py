# transformers loads its names lazily, where a type checker cannot see them.
# pyright: reportAttributeAccessIssue=false
"""Several prompts decoded together, left-padded, one step for all; rows join and leave between steps."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from decant_serve.engines.hf.loading import LoadedModel, innermost

if TYPE_CHECKING:
    import torch


class Batch:
    """The key-value cache of the rows being decoded, and their attention mask.

    Shapes: B rows, T positions of the longest row, V tokens in the vocabulary. Keys and values are
    [B, heads, T, head size], padded on the left, as is the mask [B, T].
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        named = inspect.signature(innermost(loaded.model).forward).parameters
        self._takes_positions = "position_ids" in named
        self._takes_last_only = "logits_to_keep" in named
        self._cache: Any = None
        self._mask_BT: Any = None
        self._lengths: list[int] = []

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def can_change(self) -> bool:
        """Whether rows may join or leave before all have ended: not with windows or recurrent states."""
        from transformers.cache_utils import DynamicLayer

        return self._cache is None or all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def join(self, prompts: Sequence[Sequence[int]]) -> "torch.Tensor":
        """Adds rows behind those there are; the logits [new rows, V] of their first token."""
        import torch
        from transformers import DynamicCache

        longest = max(len(prompt) for prompt in prompts)
        pads = [longest - len(prompt) for prompt in prompts]
        ids_BT = torch.tensor([[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)])
        mask_BT = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
        cache = DynamicCache(config=self._loaded.model.config)
        logits_BV = self._forward(ids_BT, mask_BT, cache, (mask_BT.cumsum(-1) - 1).clamp(min=0))
        mask_BT = mask_BT.to(self._loaded.device)
        if self._cache is None:
            self._cache, self._mask_BT = cache, mask_BT
        else:
            self._append(cache, mask_BT)
        self._lengths += [len(prompt) for prompt in prompts]
        return logits_BV

    def step(self, token_ids: Sequence[int]) -> "torch.Tensor":
        """Feeds each row its last token; the logits [B, V] of the next."""
        import torch

        one = self._mask_BT.new_ones((len(self), 1))
        self._mask_BT = torch.cat([self._mask_BT, one], dim=1)
        ids_B1 = torch.tensor(token_ids).unsqueeze(1)
        positions_B1 = torch.tensor(self._lengths).unsqueeze(1)
        logits_BV = self._forward(ids_B1, self._mask_BT, self._cache, positions_B1)
        self._lengths = [length + 1 for length in self._lengths]
        return logits_BV

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all other rows, and the padding that then no row needs."""
        import torch

        self._lengths = [self._lengths[row] for row in rows]
        if not rows:
            self._cache = self._mask_BT = None
            return
        index = torch.tensor(rows, device=self._mask_BT.device)
        self._mask_BT = self._mask_BT[index]
        unused = int(self._mask_BT.shape[1] - self._mask_BT.sum(-1).max())
        self._mask_BT = self._mask_BT[:, unused:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[index, :, unused:]
            layer.values = layer.values[index, :, unused:]

    def _append(self, cache: Any, mask_BT: "torch.Tensor") -> None:
        import torch

        longest = max(mask_BT.shape[1], self._mask_BT.shape[1])
        for mine, other in zip(self._cache.layers, cache.layers, strict=True):
            mine.keys = torch.cat([_left_padded(mine.keys, longest), _left_padded(other.keys, longest)])
            mine.values = torch.cat([_left_padded(mine.values, longest), _left_padded(other.values, longest)])
        masks = [
            torch.nn.functional.pad(mask, (longest - mask.shape[1], 0)) for mask in (self._mask_BT, mask_BT)
        ]
        self._mask_BT = torch.cat(masks)

    def _forward(
        self, ids_BT: "torch.Tensor", mask_BT: "torch.Tensor", cache: Any, positions_BT: "torch.Tensor"
    ) -> "torch.Tensor":
        device = self._loaded.device
        options: dict[str, Any] = {"position_ids": positions_BT.to(device)} if self._takes_positions else {}
        if self._takes_last_only:
            options["logits_to_keep"] = 1
        output = self._loaded.model(
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT.to(device),
            past_key_values=cache,
            use_cache=True,
            **options,
        )
        return output.logits[:, -1].float()


def _left_padded(states_BHTD: "torch.Tensor", length: int) -> "torch.Tensor":
    import torch

    return torch.nn.functional.pad(states_BHTD, (0, 0, length - states_BHTD.shape[2], 0))
