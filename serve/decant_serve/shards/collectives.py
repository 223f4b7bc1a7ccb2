"""Puts a recorder around the collectives of vLLM's tensor-parallel group."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from decant_serve.shards.recorder import Recorder
from decant_serve.shards.steps import KINDS

_METHODS: Mapping[str, str] = {
    "_all_reduce_out_place": "all_reduce",
    "_all_gather_out_place": "all_gather",
    "_reduce_scatter_out_place": "reduce_scatter",
    "gather": "gather",
}


def hook_collectives(coordinator: type[Any], recorder: Recorder) -> None:
    """Replaces the methods that collectives pass; AttributeError, and no change, where one is missing."""
    found = {name: getattr(coordinator, name) for name in _METHODS}
    for name, original in found.items():
        setattr(coordinator, name, _timed(original, recorder, KINDS.index(_METHODS[name])))


def _timed(original: Callable[..., Any], recorder: Recorder, kind: int) -> Callable[..., Any]:
    @functools.wraps(original)
    def timed(group: Any, *arguments: Any, **options: Any) -> Any:
        # Other groups (pipeline, data, expert) pass the same methods; a rank alone waits for nobody.
        if not group.unique_name.startswith("tp:") or group.world_size == 1:
            return original(group, *arguments, **options)
        recorder.enter(kind)
        try:
            return original(group, *arguments, **options)
        finally:
            recorder.leave()

    return timed
