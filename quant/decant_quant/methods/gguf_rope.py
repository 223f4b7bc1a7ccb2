"""Rotary embeddings: what a config.json asks for, as GGUF metadata and frequency factors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decant.errors import QuantizeError
from decant_quant.checkpoint import Checkpoint

_REFUSED = "cannot be carried to GGUF here; serve the checkpoint with `--engine transformers`"


@dataclass(frozen=True, slots=True)
class Rope:
    """How positions are rotated. `factors` divide the frequencies of the channel pairs: (head / 2,)."""

    theta: float
    scaling: str | None = None
    factor: float = 1.0
    original_context: int | None = None
    factors: NDArray[np.float32] | None = None


def read_rope(checkpoint: Checkpoint, *, head: int) -> Rope:
    """The rope of a config in the old style or the new; QuantizeError names a scaling it cannot carry."""
    config = checkpoint.config
    parameters: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        parameters |= config.get(key) or {}
    theta = float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = str(parameters.get("rope_type", parameters.get("type", "default")))
    if float(parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))) != 1.0:
        raise QuantizeError(f"{checkpoint.folder}: partial_rotary_factor below 1 {_REFUSED}")
    if kind not in _SCALINGS:
        raise QuantizeError(
            f"{checkpoint.folder}: rope scaling {kind} {_REFUSED} (known: {', '.join(_SCALINGS)})"
        )
    return _SCALINGS[kind](_Request(checkpoint.folder, parameters, theta, head, config))


@dataclass(frozen=True, slots=True)
class _Request:
    folder: Path
    parameters: Mapping[str, Any]
    theta: float
    head: int
    config: Mapping[str, Any]

    def number(self, key: str) -> float:
        value = self.parameters.get(key)
        if not isinstance(value, int | float):
            raise QuantizeError(f"{self.folder / 'config.json'}: rope scaling needs {key} (got {value!r})")
        return float(value)

    @property
    def original_context(self) -> float:
        key = "original_max_position_embeddings"
        return self.number(key) if key in self.parameters else float(self.config["max_position_embeddings"])


def _default(request: _Request) -> Rope:
    return Rope(request.theta)


def _linear(request: _Request) -> Rope:
    return Rope(request.theta, scaling="linear", factor=request.number("factor"))


def _yarn(request: _Request) -> Rope:
    """YaRN (arXiv 2309.00071) with the constants that transformers and llama.cpp both take as given."""
    factor = request.number("factor")
    fixed = {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": 0.1 * math.log(factor) + 1.0,
        "truncate": True,
    }
    fixed |= {"mscale": None, "mscale_all_dim": None}
    odd = [
        k
        for k, v in fixed.items()
        if request.parameters.get(k) is not None and not _same(request.parameters[k], v)
    ]
    if odd:
        raise QuantizeError(f"{request.folder}: rope scaling yarn with its own {', '.join(odd)} {_REFUSED}")
    return Rope(request.theta, scaling="yarn", factor=factor, original_context=int(request.original_context))


def _same(given: Any, usual: float | None) -> bool:
    return usual is not None and math.isclose(float(given), usual, rel_tol=1e-4)


def _llama3(request: _Request) -> Rope:
    """Llama 3.1: slow rotations are slowed by `factor`, fast ones kept, those between blended."""
    factor, context = request.number("factor"), request.original_context
    low, high = request.number("low_freq_factor"), request.number("high_freq_factor")
    frequencies = request.theta ** -(np.arange(0, request.head, 2, dtype=np.float64) / request.head)
    turns = context * frequencies / (2.0 * np.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors = 1.0 / ((1.0 - blend) / factor + blend)
    return Rope(request.theta, factors=factors.astype(np.float32))


_SCALINGS: Mapping[str, Callable[[_Request], Rope]] = {
    "default": _default,
    "linear": _linear,
    "yarn": _yarn,
    "llama3": _llama3,
}
