"""What every method does with held-out rows: measures the files it wrote, and leaves `quality.json` and
`quality.html` beside them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decant.artifact import WEIGHT_SUFFIXES, has_manifest, read_manifest
from decant.files import write_json, write_text
from decant.golden import GoldenReport
from decant_quant.checkpoint import Checkpoint
from decant_quant.methods.calibration import ChosenRows, choose_rows, load_tokenizer
from decant_quant.methods.decoder import Decoder, Source, build_decoder
from decant_quant.methods.decoder_families import family_of
from decant_quant.methods.quality import Measured, check_golden, measure
from decant_quant.methods.reading import read_checked, refuse_tensors
from decant_quant.methods.rounding import Activations
from decant_quant.options import Options
from decant_quant.quality_page import QUALITY_JSON, QUALITY_PAGE, quality_page

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Measuring:
    """An unquantized model and the rows that what is made of it is measured on."""

    checkpoint: Checkpoint
    decoder: Decoder
    rows: ChosenRows

    def original(self, names: Sequence[str]) -> "Mapping[str, Tensor]":
        """The unquantized model's tensors; QuantizeError for values that no format holds."""
        return read_checked(self.checkpoint, names)

    def measure(self, quantized: Source, *, activations: Activations | None = None) -> Measured:
        """What `quantized` lost on the held-out rows."""
        return measure(
            self.decoder,
            original=self.original,
            quantized=quantized,
            heldout=self.rows.heldout,
            activations=activations,
        )

    def check_golden(
        self, quantized: Source, folder: Path, *, tolerance: str, activations: Activations | None = None
    ) -> GoldenReport:
        """The model's golden prompts, if it has any, answered in torch from the files in `folder`."""
        model = self.checkpoint.folder
        golden = read_manifest(model).golden if has_manifest(model) else None
        return check_golden(
            self.decoder,
            quantized,
            load_tokenizer(folder),
            golden,
            tolerance=tolerance,
            activations=activations,
        )


@dataclass(frozen=True, slots=True)
class Report:
    """One artifact's measurements on their way into its folder; `details` are the method's own."""

    method: str
    measured: Measured
    restored_by: str
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def write(self, folder: Path, measuring: Measuring) -> dict[str, Any]:
        """Writes both files, and returns the part that the manifest repeats."""
        heldout = asdict(self.measured.quality)
        stored = measuring.checkpoint.tensors.values()
        report = {
            "method": self.method,
            "model": measuring.checkpoint.folder.name,
            "size_bytes": sum(f.stat().st_size for f in folder.iterdir() if f.suffix in WEIGHT_SUFFIXES),
            "size_16bit_bytes": sum(2 * math.prod(tensor.shape) for tensor in stored),
            "restored_by": self.restored_by,
            "heldout": heldout,
            "kl_by_row": self.measured.kl_by_row,
            "layers": [asdict(layer) for layer in self.measured.layers],
            "calibration": {
                "rows": len(measuring.rows.calibration),
                "tokens": sum(len(row.token_ids) for row in measuring.rows.calibration),
                "left_out_as_too_long": measuring.rows.left_out,
                "token_ids_sha256": measuring.rows.digest,
            },
            **self.details,
        }
        write_json(folder / QUALITY_JSON, report)
        write_text(folder / QUALITY_PAGE, quality_page([report]))
        return {"quality": heldout, "calibration": report["calibration"]}


def prepare_measuring(checkpoint: Checkpoint, options: Options, *, calibrates: bool) -> Measuring:
    """Builds the decoder and chooses the rows. A method that `calibrates` needs a dataset; others can do with
    held-out rows alone.
    """
    decoder = build_decoder(checkpoint.folder, family_of(checkpoint), options.gptq.device)
    refuse_tensors(checkpoint, decoder)
    rows = choose_rows(checkpoint.folder, options.calibration, context=decoder.context, calibrates=calibrates)
    return Measuring(checkpoint, decoder, rows)


def measuring_if_asked(checkpoint: Checkpoint, options: Options) -> Measuring | None:
    """`prepare_measuring` for a method that needs no rows: None where none were given."""
    if options.calibration.dataset is None and options.calibration.heldout is None:
        return None
    return prepare_measuring(checkpoint, options, calibrates=False)


def checking(checkpoint: Checkpoint, options: Options) -> Measuring:
    """As `prepare_measuring` where rows were given; else without rows, for the golden prompts alone."""
    if options.calibration.dataset is not None or options.calibration.heldout is not None:
        return prepare_measuring(checkpoint, options, calibrates=False)
    decoder = build_decoder(checkpoint.folder, family_of(checkpoint), options.gptq.device)
    refuse_tensors(checkpoint, decoder)
    return Measuring(checkpoint, decoder, ChosenRows(calibration=(), heldout=(), left_out=0))
