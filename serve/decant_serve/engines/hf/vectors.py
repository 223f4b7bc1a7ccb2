"""Embeddings of a causal language model: its last hidden states, pooled into one vector of length 1."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from decant_serve.engines.hf.loading import LoadedModel, innermost

if TYPE_CHECKING:
    import torch

_BATCH_TOKENS = 4096


class EmbeddingJob:
    """Inputs that want a vector each. Made and awaited on the event loop's thread, as a `Job` is."""

    def __init__(self, inputs: Sequence[Sequence[int]]) -> None:
        self.inputs = inputs
        self.is_cancelled = False
        self.vectors: dict[int, list[float]] = {}
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[list[list[float]]] = self._loop.create_future()

    async def result(self) -> list[list[float]]:
        """One vector per input, in order; RuntimeError where the model failed."""
        try:
            return await self._done
        finally:
            self.is_cancelled = True

    @property
    def left(self) -> list[int]:
        """Which inputs have no vector yet, the shortest first."""
        waiting = (place for place in range(len(self.inputs)) if place not in self.vectors)
        return sorted(waiting, key=lambda place: len(self.inputs[place]))

    def finish(self) -> None:
        """Hands the vectors over."""
        vectors = [self.vectors[place] for place in range(len(self.inputs))]
        self._loop.call_soon_threadsafe(self._settle, vectors)

    def fail(self, message: str) -> None:
        """Hands the failure over."""
        self._loop.call_soon_threadsafe(self._settle, RuntimeError(message))

    def _settle(self, outcome: list[list[float]] | RuntimeError) -> None:
        if self._done.done():
            return
        if isinstance(outcome, RuntimeError):
            self._done.set_exception(outcome)
        else:
            self._done.set_result(outcome)


def embed_some(loaded: LoadedModel, job: EmbeddingJob) -> None:
    """Computes the vectors of as many inputs as fit into one batch, of like lengths."""
    left = job.left
    count = 1
    while count < len(left) and (count + 1) * len(job.inputs[left[count]]) <= _BATCH_TOKENS:
        count += 1
    places = left[:count]
    vectors_BD = _vectors(loaded, [job.inputs[place] for place in places])
    job.vectors |= dict(zip(places, vectors_BD.tolist(), strict=True))


def _vectors(loaded: LoadedModel, inputs: Sequence[Sequence[int]]) -> "torch.Tensor":
    """[inputs, hidden size], each of length 1. Padded on the right, where a causal model does not look."""
    import torch

    lengths = [len(ids) for ids in inputs]
    longest = max(lengths)
    ids_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in inputs], device=loaded.device)
    ends_B1 = torch.tensor(lengths, device=loaded.device).unsqueeze(1)
    mask_BT = (torch.arange(longest, device=loaded.device) < ends_B1).long()
    body = innermost(loaded.model).base_model
    states_BTD = body(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state.float()
    if loaded.pooling == "mean":
        pooled_BD = (states_BTD * mask_BT.unsqueeze(-1)).sum(1) / ends_B1
    elif loaded.pooling == "last":
        pooled_BD = states_BTD[torch.arange(len(inputs)), ends_B1[:, 0] - 1]
    else:
        pooled_BD = states_BTD[:, 0]
    return torch.nn.functional.normalize(pooled_BD, dim=-1)
