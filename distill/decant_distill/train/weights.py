"""The weights that learn, whole and on their own: the best so far, and those of a model in pieces."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decant.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor


def learned_weights(model: Any) -> "dict[str, Tensor]":
    """Every weight that learns, by name, whole and in the CPU's memory.

    Where weights are spread over processes all of them must ask: putting one together takes them all.
    """
    from torch.distributed.tensor import DTensor

    found: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            whole: Any = weight.full_tensor() if isinstance(weight, DTensor) else weight
            found[name] = whole.detach().to("cpu", copy=True).contiguous()
    return found


def put_weights(model: Any, weights: "Mapping[str, Tensor]") -> None:
    """Makes these the model's learned weights; TrainingError when they are not those of such a model."""
    import torch

    learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if learning.keys() != weights.keys():
        odd = sorted(learning.keys() ^ weights.keys())
        raise TrainingError(
            f"the weights kept are not this student's: {odd[0]} and {len(odd) - 1} more differ"
        )
    with torch.no_grad():
        for name, weight in learning.items():
            weight.copy_(weights[name])


def keep_weights(folder: Path, step: int, weights: "Mapping[str, Tensor]") -> None:
    """Keeps the weights of a step, replacing a file of the same step in one move."""
    from safetensors.torch import save_file

    path = best_file(folder, step)
    folder.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".aside")
    save_file(dict(weights), str(aside))
    with aside.open("rb+") as file:
        file.flush()
    aside.replace(path)


def best_weights(folder: Path, step: int) -> "dict[str, Tensor]":
    """The weights kept at a step; TrainingError when they are not there any more."""
    from safetensors.torch import load_file

    path = best_file(folder, step)
    if not path.is_file():
        raise TrainingError(f"{path}: the best weights are not there; delete {folder} to start over")
    return load_file(str(path))


def drop_weights(folder: Path, *, keep: frozenset[int]) -> None:
    """Deletes the kept weights of all other steps."""
    for path in folder.glob("best-*.safetensors"):
        if int(path.stem.rpartition("-")[2]) not in keep:
            path.unlink()


def best_file(folder: Path, step: int) -> Path:
    """Where the weights of a step are kept."""
    return folder / f"best-{step}.safetensors"
