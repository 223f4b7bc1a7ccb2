# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A GPTQ folder recovered in place: its files get the trained scales only if held-out rows are better off."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decant.files import write_bytes
from decant.stats import Interval, paired_difference
from decant_quant.methods.gptq.reader import GptqCheckpoint, open_gptq
from decant_quant.methods.gptq.recover import recover_scales
from decant_quant.methods.measuring import Measuring
from decant_quant.methods.quality import Measured
from decant_quant.options import RecoverConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Recovery:
    """What training the scales did to the held-out divergence; `change` is its paired interval over rows."""

    kept: bool
    kl_mean_before: float
    kl_mean_after: float
    change: Interval
    wall_s: float
    measured: Measured

    def record(self) -> dict[str, Any]:
        """What quality.json says of it."""
        return {
            "kept": self.kept,
            "kl_mean_before": self.kl_mean_before,
            "kl_mean_after": self.kl_mean_after,
            "kl_change_low": self.change.low,
            "kl_change_high": self.change.high,
            "wall_s": round(self.wall_s, 1),
        }

    def sentence(self) -> str:
        """The outcome in one line."""
        what = "kept" if self.kept else "not kept, the scales are as they were"
        return (
            f"recovery: held-out mean KL {self.kl_mean_after:.3g} (was {self.kl_mean_before:.3g}) nats,"
            f" change {self.change.low:+.2g} to {self.change.high:+.2g} with 95 % confidence: {what}"
        )


def recover_folder(
    folder: Path, measuring: Measuring, before: Measured, config: RecoverConfig, *, seed: int
) -> Recovery:
    """Trains the scales on the calibration rows; kept when the whole interval of the held-out rows' change in
    divergence is below zero.
    """
    started = time.perf_counter()
    quantized = open_gptq(folder)
    scales = recover_scales(
        measuring.decoder,
        original=measuring.original,
        quantized=quantized,
        rows=measuring.rows.calibration,
        config=config,
        seed=seed,
    )
    after = measuring.measure(_Replaced(quantized, scales).read)
    change = paired_difference(before.kl_by_row, after.kl_by_row, seed=seed).interval
    kept = change.high < 0
    if kept:
        _write_scales(folder, scales)
    return Recovery(
        kept=kept,
        kl_mean_before=before.quality.kl_mean,
        kl_mean_after=after.quality.kl_mean,
        change=change,
        wall_s=time.perf_counter() - started,
        measured=after if kept else before,
    )


@dataclass(frozen=True, slots=True)
class _Replaced:
    """A GPTQ folder as it would be with other scales."""

    quantized: GptqCheckpoint
    scales: "Mapping[str, Tensor]"

    def read(self, names: Sequence[str]) -> "Mapping[str, Tensor]":
        return {name: self.quantized.restored(name, self.scales) for name in names}


def _write_scales(folder: Path, scales: "Mapping[str, Tensor]") -> None:
    """Replaces the shards one by one: finished layers of the run share their blocks and stay as they are."""
    import safetensors.torch

    for file in sorted(folder.glob("*.safetensors")):
        stored = safetensors.torch.load_file(file)
        renewed = {name: scales.get(name, tensor) for name, tensor in stored.items()}
        if any(name in scales for name in stored):
            write_bytes(file, safetensors.torch.save(renewed, metadata={"format": "pt"}))
