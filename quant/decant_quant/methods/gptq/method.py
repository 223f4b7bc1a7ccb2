# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""`gptq`, `awq` and `w8a8`: a Hugging Face checkpoint becomes one of integer codes, read back and measured.

Peak memory is a layer in float32, the calibration rows' hidden states, and the embedding.
"""

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decant import __version__
from decant.errors import ParityError
from decant.files import sha256_path, write_bytes, write_json
from decant.golden import GoldenReport
from decant.progress import Progress
from decant_quant.checkpoint import open_checkpoint
from decant_quant.method import Written
from decant_quant.methods.calibration import ChosenRows
from decant_quant.methods.decoder import HEAD, Batch, Decoder
from decant_quant.methods.folder import copy_side_files, write_index
from decant_quant.methods.gptq.checks import quantized_names, refuse_shapes
from decant_quant.methods.gptq.grid import GridSpec, layout_of
from decant_quant.methods.gptq.layers import LinearError, quantize_layer
from decant_quant.methods.gptq.progress import FinishedLayers
from decant_quant.methods.gptq.reader import open_gptq
from decant_quant.methods.gptq.recipe import Recipe, awq_recipe, gptq_recipe, w8a8_recipe
from decant_quant.methods.gptq.recovery import Recovery, recover_folder
from decant_quant.methods.gptq.relay import relay_folder
from decant_quant.methods.measuring import Measuring, Report, prepare_measuring
from decant_quant.methods.quality import Measured
from decant_quant.methods.restorable import open_restorable
from decant_quant.methods.smoothing import smooth_layer
from decant_quant.options import GptqConfig, Options

if TYPE_CHECKING:
    from torch import Tensor

# How far golden answers may drift, in the names of `decant.golden.TOLERANCES`.
_TOLERANCES = {2: "q4", 3: "q4", 4: "q4", 8: "q8"}


def build(_variant: str, options: Options) -> "CodedMethod":
    """The method behind `gptq`."""
    return CodedMethod(gptq_recipe(options), options)


def build_awq(_variant: str, options: Options) -> "CodedMethod":
    """The method behind `awq`."""
    return CodedMethod(awq_recipe(options), options)


def build_w8a8(_variant: str, options: Options) -> "CodedMethod":
    """The method behind `w8a8`."""
    return CodedMethod(w8a8_recipe(options), options)


@dataclass(frozen=True, slots=True)
class CodedMethod:
    """Quantizes the linears of the layers to integer codes."""

    recipe: Recipe
    options: Options

    def prepare(self, model: Path) -> "CodedRun":
        """Checks the checkpoint's tensors against its architecture, and chooses the rows."""
        measuring = prepare_measuring(open_checkpoint(model), self.options, calibrates=True)
        self.recipe.refuse_family(measuring.decoder.family)
        refuse_shapes(measuring.decoder, self.recipe.grid)
        return CodedRun(measuring, self.recipe, self.options)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a run found beside its quality."""

    linears: Sequence[LinearError]
    recovery: Recovery | None
    golden: GoldenReport
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CodedRun:
    """A checked checkpoint with the rows to calibrate and to measure on."""

    measuring: Measuring
    recipe: Recipe
    options: Options

    @property
    def settings(self) -> GptqConfig:
        """The grid and how its codes are found."""
        return self.recipe.grid

    @property
    def decoder(self) -> Decoder:
        """The model, without its weights."""
        return self.measuring.decoder

    @property
    def rows(self) -> ChosenRows:
        """The rows to calibrate and to measure on."""
        return self.measuring.rows

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights, in 16 bits or as codes, scales and zero points."""
        quantized = quantized_names(self.decoder)
        total = 0
        for name, (outputs, *inputs) in self.decoder.shapes.items():
            values = outputs * (inputs[0] if inputs else 1)
            group = inputs[0] if self.settings.group_size == -1 and inputs else self.settings.group_size
            packed = self.settings.bits / 8 + (2 + self.settings.bits / 8) / group
            total += int(values * (packed if name in quantized else 2)) + 4096
        # Another layout is written beside GPTQ's and compared with it.
        return total if self.recipe.layout == "gptq" else 2 * total

    def write(self, folder: Path) -> Written:
        """Quantizes layer by layer, reads the written files back and measures them; ParityError when they
        no longer say what the golden prompts say.
        """
        import torch

        layers = FinishedLayers(
            self.options.progress_folder or folder / ".layers",
            run=self._identity(),
            grid=self.recipe.spec,
        )
        started = time.perf_counter()
        with torch.no_grad():
            errors = self._quantize(layers)
            self._write_files(folder, layers)
        if self.options.progress_folder is None:
            shutil.rmtree(folder / ".layers")
        written = time.perf_counter()
        measured = self.measuring.measure(open_gptq(folder).read, activations=self.recipe.activations)
        recovery = self._recover(folder, measured)
        if self.recipe.layout != "gptq":
            relay_folder(folder, self.recipe)
        golden = self._check_golden(folder)
        seconds = {
            "quantize": round(written - started, 2),
            "measure_and_recover": round(time.perf_counter() - written, 2),
        }
        outcome = _Outcome([e for layer in errors for e in layer], recovery, golden, seconds)
        return self._report(folder, measured if recovery is None else recovery.measured, outcome)

    def _report(self, folder: Path, measured: Measured, outcome: "_Outcome") -> Written:
        recovery = outcome.recovery
        report = Report(
            f"{self.recipe.name}, {self.settings.bits} bits"
            f"{', recovered' if recovery and recovery.kept else ''}",
            measured,
            restored_by="the written codes, restored exactly and run in torch"
            + (", inputs rounded per token" if self.recipe.activations else ""),
            details={
                "golden": outcome.golden.model_dump(mode="json"),
                "linears": [asdict(error) for error in outcome.linears],
                "recovery": recovery.record() if recovery else None,
            },
        )
        worst = max(outcome.linears, key=lambda error: error.relative_error)
        return Written(
            kind="hf",
            measurements={
                "tensor_types": self._counts(),
                "seconds": dict(outcome.seconds),
                **report.write(folder, self.measuring),
            },
            notes=(
                *([recovery.sentence()] if recovery else []),
                measured.quality.sentence(),
                f"largest output error of a linear: {worst.relative_error:.2%}, {worst.name}",
            ),
            golden=outcome.golden,
        )

    def done(self) -> None:
        """Removes the finished layers of the run: the artifact has them."""
        if self.options.progress_folder is not None:
            shutil.rmtree(self.options.progress_folder, ignore_errors=True)

    def _recover(self, folder: Path, before: Measured) -> Recovery | None:
        """Trains the scales where that was asked for; the files keep the better of both."""
        if self.options.recovery is None:
            return None
        return recover_folder(
            folder, self.measuring, before, self.options.recovery, seed=self.options.calibration.seed
        )

    def _quantize(self, layers: FinishedLayers) -> list[list[LinearError]]:
        batches = self.decoder.embed(self._rounded, [row.token_ids for row in self.rows.calibration])
        total = len(self.decoder)
        finished = next((index for index in range(total) if not layers.has(index)), total)
        errors: list[list[LinearError]] = []
        with Progress(total, unit="layer", label=self.recipe.name, start=finished) as progress:
            for index in range(total):
                if index < finished:
                    self.decoder.advance(index, layers.open(index).read, batches)
                else:
                    self._quantize_layer(index, layers, batches)
                    progress.advance()
                errors.append(layers.errors(index))
        return errors

    def _quantize_layer(self, index: int, layers: FinishedLayers, batches: Sequence[Batch]) -> None:
        names = self.decoder.layer_names(index)
        found = self._rounded(list(names.values()))
        weights = {short: found[name] for short, name in names.items()}
        if self.recipe.smoothing is not None:
            weights = smooth_layer(self.decoder, index, weights, batches, self.recipe.smoothing)
        packed, errors = quantize_layer(self.decoder, index, weights, batches, self.recipe.solving)
        kept = {
            name: weights[name].half()
            for name in names
            if f"{name.removesuffix('.weight')}.qweight" not in packed
        }
        stored, prefix = self.decoder.family.stored, f"model.layers.{index}."
        layers.save(
            index,
            {f"{prefix}{stored(name)}": tensor for name, tensor in {**kept, **packed}.items()},
            [LinearError(f"{prefix}{stored(e.name)}", e.relative_error, e.damping) for e in errors],
        )

    def _rounded(self, names: Sequence[str]) -> "Mapping[str, Tensor]":
        """Tensors as the artifact will hold them, but for the linears, which are yet to be quantized."""
        quantized = quantized_names(self.decoder)
        found = self.measuring.original(names)
        return {name: t if name in quantized else t.half().float() for name, t in found.items()}

    def _write_files(self, folder: Path, layers: FinishedLayers) -> None:
        import safetensors.torch

        total = len(self.decoder)
        files = [f"model-{number:05}-of-{total + 1:05}.safetensors" for number in range(1, total + 2)]
        for index, name in enumerate(files[:-1]):
            layers.place(index, folder / name)
        ends = {name: tensor.half() for name, tensor in self._rounded(self.decoder.end_names()).items()}
        write_bytes(folder / files[-1], safetensors.torch.save(ends, metadata={"format": "pt"}))
        write_index(folder, files)
        settings = {"quantization_config": quantization_config(self.settings), "dtype": "float16"}
        config = {
            key: value for key, value in self.measuring.checkpoint.config.items() if key != "torch_dtype"
        }
        write_json(folder / "config.json", {**config, **settings})
        copy_side_files(self.measuring.checkpoint.folder, folder)

    def _check_golden(self, folder: Path) -> GoldenReport:
        """The golden prompts by the files as they will be loaded; ParityError when they say otherwise."""
        golden = self.measuring.check_golden(
            open_restorable(folder).read,
            folder,
            tolerance=_TOLERANCES[self.settings.bits],
            activations=self.recipe.activations,
        )
        self._refuse_breaks(golden)
        return golden

    def _refuse_breaks(self, golden: GoldenReport) -> None:
        if golden.ok:
            return
        # Another run with these settings would end the same way.
        self.done()
        first = golden.breaks[0]
        if first.kind != "weights":
            golden.raise_if_broken()
        raise ParityError(
            f"stage {first.stage}: at {self.settings.bits} bits {len(golden.breaks)} of {golden.checked}"
            f" golden prompts are answered otherwise (prompt {first.prompt_index}: {first.detail}); calibrate"
            f" on rows like them, or take a smaller gptq.group_size or more gptq.bits"
        )

    def _counts(self) -> dict[str, int]:
        quantized = quantized_names(self.decoder)
        others = set(self.decoder.shapes) - quantized - ({HEAD} if self.decoder.is_tied else set())
        return dict(Counter({f"{self.settings.bits}-bit": len(quantized), "F16": len(others)}))

    def _identity(self) -> dict[str, Any]:
        """What must be the same for layers of an earlier run to be gone on from."""
        import torch

        return {
            "decant": __version__,
            "torch": torch.__version__,
            "device": self.decoder.device,
            "model_sha256": sha256_path(self.measuring.checkpoint.folder),
            "rows_sha256": self.rows.digest,
            "method": self.recipe.name,
            "settings": {**self.recipe.told, "device": self.decoder.device},
        }


def quantization_config(settings: GptqConfig) -> dict[str, Any]:
    """config.json's quantization_config, in the words of the GPTQ format.

    `desc_act` says whether groups are scattered over the columns. Static groups are not, whatever the order
    the columns were solved in, so it is always false and kernels need no reordering.
    """
    return {
        "quant_method": "gptq",
        "checkpoint_format": layout_of(GridSpec(settings.bits, settings.sym)),
        "bits": settings.bits,
        "group_size": settings.group_size,
        "desc_act": False,
        "static_groups": settings.act_order,
        "sym": settings.sym,
        "lm_head": False,
        "true_sequential": True,
        "damp_percent": settings.damping,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"decant:{__version__}"], "act_order": settings.act_order},
    }
