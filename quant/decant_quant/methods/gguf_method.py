"""`gguf:TYPE`: a Hugging Face checkpoint written as one GGUF file, tensor by tensor.

Metadata keys and tensor names are those of the `gguf` package; peak memory is one encoded tensor.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decant.errors import MissingExtraError, QuantizeError
from decant.progress import Progress
from decant_quant.checkpoint import Checkpoint, open_checkpoint
from decant_quant.method import Written
from decant_quant.methods.ggml_library import Ggml, open_ggml
from decant_quant.methods.gguf_families import (
    Dimensions,
    Family,
    PlannedTensor,
    dimensions,
    family_of,
    plan_tensors,
)
from decant_quant.methods.gguf_metadata import add_metadata
from decant_quant.methods.gguf_mixes import MIXES
from decant_quant.methods.gguf_restored import open_restored
from decant_quant.methods.gguf_rope import Rope, read_rope
from decant_quant.methods.gguf_tokenizer import Vocabulary, copy_tokenizer, read_vocabulary
from decant_quant.methods.gguf_types import Encoding, choose_all, encode, needs_ggml
from decant_quant.methods.importance import ImportanceMatrix, collect, read_matrix, write_matrix
from decant_quant.methods.measuring import Measuring, Report, measuring_if_asked
from decant_quant.methods.token_check import compare_tokens
from decant_quant.options import Options

if TYPE_CHECKING:
    import gguf

FILE, IMATRIX_FILE = "model.gguf", "model.imatrix"

# Room for the header beyond its strings: keys, numbers, tensor records, alignment.
_HEADER_BYTES = 1 << 16
_BYTES_PER_TOKEN = 64
_RESTORED_BY = "the file's weights, restored by the gguf package and run in torch"


@dataclass(frozen=True, slots=True)
class GgufMethod:
    """Writes GGUF files of one type."""

    variant: str
    options: Options

    def prepare(self, model: Path) -> "GgufConversion":
        """Reads and checks everything but the values of the weights."""
        checkpoint = open_checkpoint(model)
        family = family_of(checkpoint)
        sizes, notes = dimensions(checkpoint, family)
        vocabulary = read_vocabulary(model, size=sizes.vocabulary)
        rope = read_rope(checkpoint, head=sizes.head)
        tensors = plan_tensors(checkpoint, family, sizes)
        measuring = measuring_if_asked(checkpoint, self.options)
        importance = self._importance(tensors, measuring)
        mix = MIXES[self.variant]
        has = importance.known
        encodings = choose_all(tensors, mix, sizes, has_importance=has)
        ggml = open_ggml(self.options.python) if needs_ggml(encodings, has_importance=has) else None
        return GgufConversion(
            variant=self.variant,
            model=Model(checkpoint, family, sizes, rope),
            vocabulary=vocabulary,
            tensors=tuple(zip(tensors, encodings, strict=True)),
            ggml=ggml,
            importance=importance,
            notes=(*notes, *vocabulary.notes),
            measuring=measuring,
            compares_tokens=self.options.compare_tokens,
        )

    def _importance(self, tensors: list[PlannedTensor], measuring: Measuring | None) -> "ImportanceSource":
        """Where the importance comes from; QuantizeError for a type that is noise without one."""
        settings, mix = self.options.gguf, MIXES[self.variant]
        weighted = mix.matrices not in ("F32", "BF16", "F16", "Q8_0") and settings.importance == "auto"
        if weighted and settings.imatrix is not None:
            return ImportanceSource(read=read_matrix(settings.imatrix, tensors))
        if weighted and measuring is not None and measuring.rows.calibration:
            return ImportanceSource(measuring=measuring)
        if mix.needs_importance:
            raise QuantizeError(
                f"gguf:{self.variant} is noise without an importance matrix: give rows of your task with"
                f" --set calibration.dataset=FILE, or a finished one with --set gguf.imatrix=FILE"
            )
        return ImportanceSource()


def build(variant: str, options: Options) -> GgufMethod:
    """The method that writes `gguf:<variant>`."""
    try:
        import gguf as _  # noqa: F401
    except ImportError:
        raise MissingExtraError("gguf", "gguf") from None
    return GgufMethod(variant, options)


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint and what its config says."""

    checkpoint: Checkpoint
    family: Family
    sizes: Dimensions
    rope: Rope


@dataclass(frozen=True, slots=True)
class ImportanceSource:
    """An importance matrix that was read, or the rows to collect one from when writing begins, or neither."""

    read: ImportanceMatrix | None = None
    measuring: Measuring | None = None

    @property
    def known(self) -> bool:
        """Whether there will be one."""
        return self.read is not None or self.measuring is not None

    def take(self, tensors: list[PlannedTensor]) -> ImportanceMatrix | None:
        """The matrix, collected now if need be."""
        return self.read if self.measuring is None else collect(self.measuring, tensors)


@dataclass(frozen=True, slots=True)
class GgufConversion:
    """A checked checkpoint with the name and number format of each of its tensors."""

    variant: str
    model: Model
    vocabulary: Vocabulary
    tensors: tuple[tuple[PlannedTensor, Encoding], ...]
    ggml: Ggml | None
    importance: ImportanceSource
    notes: tuple[str, ...]
    measuring: Measuring | None
    compares_tokens: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of the GGUF file and the tokenizer's files, a little more rather than less."""
        weights = sum(encoding.size_bytes(tensor.shape) for tensor, encoding in self.tensors)
        columns = sum(tensor.shape[-1] * len(tensor.sources) for tensor, _ in self.tensors)
        texts = self.model.sizes.vocabulary * _BYTES_PER_TOKEN * 3
        matrix = 4 * columns + _HEADER_BYTES if self.importance.measuring else 0
        return weights + texts + len(self.tensors) * 128 + _HEADER_BYTES + matrix

    def write(self, folder: Path) -> Written:
        """Writes model.gguf and copies the tokenizer's files into `folder`."""
        import gguf

        compared = (
            compare_tokens(self.model.checkpoint.folder, self.vocabulary) if self.compares_tokens else ()
        )
        matrix = self.importance.take([tensor for tensor, _ in self.tensors])
        self._refuse_unknown_importance(matrix)
        writer = gguf.GGUFWriter(folder / FILE, self.model.family.arch)
        try:
            add_metadata(writer, self.model.sizes, self.model.rope)
            writer.add_file_type(gguf.LlamaFileType[MIXES[self.variant].file_type])
            self.vocabulary.add_to(writer)
            self._write_tensors(writer, matrix)
        finally:
            writer.close()
        if matrix is not None and self.importance.measuring is not None:
            write_matrix(matrix, folder / IMATRIX_FILE, dataset="calibration rows")
        copy_tokenizer(self.model.checkpoint.folder, folder, self.vocabulary)
        measurements, notes = self._measurements(matrix), (*self.notes, *compared, *self._fallback_notes())
        if self.measuring is None:
            return Written(kind="gguf", measurements=measurements, notes=notes)
        restored = open_restored(folder / FILE, [tensor for tensor, _ in self.tensors])
        measured = self.measuring.measure(restored.read)
        report = Report(f"gguf:{self.variant}", measured, restored_by=_RESTORED_BY)
        return Written(
            kind="gguf",
            measurements={**measurements, **report.write(folder, self.measuring)},
            notes=(*notes, measured.quality.sentence()),
        )

    def done(self) -> None:
        """There is nothing to clear."""

    def _write_tensors(self, writer: "gguf.GGUFWriter", matrix: ImportanceMatrix | None) -> None:
        import gguf

        factors = self.model.rope.factors
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, np.dtype(np.float32), factors.nbytes)
        for tensor, encoding in self.tensors:
            number_type = gguf.GGMLQuantizationType[encoding.name]
            size = encoding.size_bytes(tensor.shape)
            # Any dtype but uint8 makes the writer take the shape as elements, which is what this is.
            writer.add_tensor_info(
                tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=number_type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        with Progress(len(self.tensors), unit="tensor", label="quantize") as progress:
            for tensor, encoding in self.tensors:
                importance = matrix.of(tensor) if matrix and tensor.is_matrix else None
                writer.write_tensor_data(encode(tensor, encoding, self.ggml, importance))
                progress.advance()
        writer.flush()

    def _refuse_unknown_importance(self, matrix: ImportanceMatrix | None) -> None:
        """Types that are noise without an importance need one for every matrix within the layers."""
        if matrix is None or not MIXES[self.variant].needs_importance:
            return
        without = [t.name for t, _ in self.tensors if t.is_matrix and t.kind and matrix.of(t) is None]
        if without:
            raise QuantizeError(
                f"gguf:{self.variant} needs an importance for every matrix, and {len(without)} have none,"
                f" {without[0]} first; take gguf:Q3_K_M or more bits, or a whole gguf.imatrix"
            )

    def _measurements(self, matrix: ImportanceMatrix | None) -> dict[str, Any]:
        counts = Counter(encoding.name for _, encoding in self.tensors)
        weighted = None
        if matrix is not None:
            weighted = {"tensors": len(matrix.sums), "tokens": matrix.tokens}
        return {"tensor_types": dict(counts), "kept_f16": self._kept(), "importance": weighted}

    def _kept(self) -> list[str]:
        return [tensor.name for tensor, found in self.tensors if found.name == "F16" != found.wanted]

    def _fallback_notes(self) -> tuple[str, ...]:
        notes: list[str] = []
        kept = self._kept()
        if kept:
            listed = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
            notes.append(f"kept in F16, because their rows are not a whole number of blocks of 32: {listed}")
        other = Counter(
            f"{found.name} instead of {found.wanted}"
            for _, found in self.tensors
            if found.name not in ("F16", found.wanted)
        )
        if other:
            listed = ", ".join(f"{count} in {words}" for words, count in other.items())
            notes.append(f"rows that are not a whole number of blocks of 256 have smaller blocks: {listed}")
        return tuple(notes)
