"""Puts marks around the collectives of one of vLLM's process groups, and of no other."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from decant_serve.shards.steps import KINDS

_METHODS: Mapping[str, str] = {
    "_all_reduce_out_place": "all_reduce",
    "_all_gather_out_place": "all_gather",
    "_reduce_scatter_out_place": "reduce_scatter",
    "gather": "gather",
}


class Marks(Protocol):
    """What is told of each collective; it must not fail."""

    def enter(self, kind: int) -> None:
        """A collective begins."""
        ...

    def leave(self) -> None:
        """It is over."""
        ...


def hook_collectives(group: Any, marks: Marks) -> None:
    """Replaces, on this group alone, the methods that its collectives pass.

    A rank alone waits for nobody, and its group stays as it is. AttributeError, and no change, where a
    method is missing.
    """
    found = {name: getattr(group, name) for name in _METHODS}
    if group.world_size == 1:
        return
    for name, original in found.items():
        setattr(group, name, _timed(original, marks, KINDS.index(_METHODS[name])))


def _timed(original: Callable[..., Any], marks: Marks, kind: int) -> Callable[..., Any]:
    @functools.wraps(original)
    def timed(*arguments: Any, **options: Any) -> Any:
        marks.enter(kind)
        try:
            return original(*arguments, **options)
        finally:
            marks.leave()

    return timed
