"""`gguf:TYPE`: a Hugging Face checkpoint written as one GGUF file, tensor by tensor.

Metadata keys and tensor names are those of the `gguf` package; peak memory is one encoded tensor.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decant.errors import MissingExtraError
from decant.progress import Progress
from decant_quant.checkpoint import Checkpoint, open_checkpoint
from decant_quant.method import Written
from decant_quant.methods.gguf_families import (
    Dimensions,
    Family,
    PlannedTensor,
    dimensions,
    family_of,
    plan_tensors,
)
from decant_quant.methods.gguf_restored import open_restored
from decant_quant.methods.gguf_rope import Rope, read_rope
from decant_quant.methods.gguf_tokenizer import Vocabulary, copy_tokenizer, read_vocabulary
from decant_quant.methods.gguf_types import MIXES, Encoding, Mix, choose, encode
from decant_quant.methods.measuring import Measuring, Report, measuring_if_asked
from decant_quant.options import Options

if TYPE_CHECKING:
    import gguf

FILE = "model.gguf"

# Room for the header beyond its strings: keys, numbers, tensor records, alignment.
_HEADER_BYTES = 1 << 16
_BYTES_PER_TOKEN = 64


@dataclass(frozen=True, slots=True)
class GgufMethod:
    """Writes GGUF files of one mix of number formats."""

    mix: Mix
    options: Options = field(default_factory=Options)

    def prepare(self, model: Path) -> "GgufConversion":
        """Reads and checks everything but the values of the weights."""
        checkpoint = open_checkpoint(model)
        family = family_of(checkpoint)
        sizes, notes = dimensions(checkpoint, family)
        vocabulary = read_vocabulary(model, size=sizes.vocabulary)
        rope = read_rope(checkpoint, head=sizes.head)
        tensors = plan_tensors(checkpoint, family, sizes)
        encodings = tuple(choose(tensor, self.mix) for tensor in tensors)
        return GgufConversion(
            checkpoint=checkpoint,
            family=family,
            sizes=sizes,
            vocabulary=vocabulary,
            rope=rope,
            tensors=tuple(zip(tensors, encodings, strict=True)),
            file_type=self.mix.file_type,
            notes=(*notes, *vocabulary.notes),
            measuring=measuring_if_asked(checkpoint, self.options),
        )


def build(variant: str, options: Options) -> GgufMethod:
    """The method that writes `gguf:<variant>`; of the options it takes the rows to measure on."""
    try:
        import gguf as _  # noqa: F401
    except ImportError:
        raise MissingExtraError("gguf", "gguf") from None
    return GgufMethod(MIXES[variant], options)


@dataclass(frozen=True, slots=True)
class GgufConversion:
    """A checked checkpoint with the name and number format of each of its tensors."""

    checkpoint: Checkpoint
    family: Family
    sizes: Dimensions
    vocabulary: Vocabulary
    rope: Rope
    tensors: tuple[tuple[PlannedTensor, Encoding], ...]
    file_type: str
    notes: tuple[str, ...]
    measuring: Measuring | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the GGUF file and the tokenizer's files, a little more rather than less."""
        weights = sum(encoding.size_bytes(tensor.source.shape) for tensor, encoding in self.tensors)
        return (
            weights + self.sizes.vocabulary * _BYTES_PER_TOKEN * 3 + len(self.tensors) * 128 + _HEADER_BYTES
        )

    def write(self, folder: Path) -> Written:
        """Writes model.gguf and copies the tokenizer's files into `folder`."""
        import gguf

        writer = gguf.GGUFWriter(folder / FILE, self.family.arch)
        try:
            self._add_metadata(writer)
            self.vocabulary.add_to(writer)
            self._write_tensors(writer)
        finally:
            writer.close()
        copy_tokenizer(self.checkpoint.folder, folder, self.vocabulary)
        measurements, notes = self._measurements(), (*self.notes, *self._fallback_notes())
        if self.measuring is None:
            return Written(kind="gguf", measurements=measurements, notes=notes)
        restored = open_restored(folder / FILE, [tensor for tensor, _ in self.tensors])
        measured = self.measuring.measure(restored.read)
        name = f"gguf:{next(name for name, mix in MIXES.items() if mix.file_type == self.file_type)}"
        report = Report(
            name, measured, restored_by="the file's weights, restored by the gguf package and run in torch"
        )
        return Written(
            kind="gguf",
            measurements={**measurements, **report.write(folder, self.measuring)},
            notes=(*notes, measured.quality.sentence()),
        )

    def done(self) -> None:
        """There is nothing to clear."""

    def _add_metadata(self, writer: "gguf.GGUFWriter") -> None:
        import gguf

        sizes = self.sizes
        writer.add_type("model")
        writer.add_file_type(gguf.LlamaFileType[self.file_type])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_vocab_size(sizes.vocabulary)
        writer.add_context_length(sizes.context)
        writer.add_embedding_length(sizes.hidden)
        writer.add_feed_forward_length(sizes.intermediate)
        writer.add_block_count(sizes.layers)
        writer.add_head_count(sizes.heads)
        writer.add_head_count_kv(sizes.kv_heads)
        writer.add_key_length(sizes.head)
        writer.add_value_length(sizes.head)
        writer.add_layer_norm_rms_eps(sizes.rms_eps)
        writer.add_rope_dimension_count(sizes.head)
        writer.add_rope_freq_base(self.rope.theta)
        if self.rope.scaling is not None:
            writer.add_rope_scaling_type(gguf.RopeScalingType(self.rope.scaling))
            writer.add_rope_scaling_factor(self.rope.factor)
        if self.rope.original_context is not None:
            writer.add_rope_scaling_orig_ctx_len(self.rope.original_context)

    def _write_tensors(self, writer: "gguf.GGUFWriter") -> None:
        import gguf

        if self.rope.factors is not None:
            writer.add_tensor_info(
                "rope_freqs.weight", self.rope.factors.shape, np.dtype(np.float32), self.rope.factors.nbytes
            )
        for tensor, encoding in self.tensors:
            number_type = gguf.GGMLQuantizationType[encoding.name]
            size = encoding.size_bytes(tensor.source.shape)
            # Any dtype but uint8 makes the writer take the shape as elements, which is what this is.
            writer.add_tensor_info(
                tensor.name, tensor.source.shape, np.dtype(np.float32), size, raw_dtype=number_type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if self.rope.factors is not None:
            writer.write_tensor_data(self.rope.factors)
        with Progress(len(self.tensors), unit="tensor", label="quantize") as progress:
            for tensor, encoding in self.tensors:
                writer.write_tensor_data(encode(tensor, encoding))
                progress.advance()
        writer.flush()

    def _measurements(self) -> dict[str, Any]:
        counts = Counter(encoding.name for _, encoding in self.tensors)
        return {"tensor_types": dict(counts), "kept_f16": self._kept()}

    def _kept(self) -> list[str]:
        return [tensor.name for tensor, encoding in self.tensors if encoding.name != encoding.wanted]

    def _fallback_notes(self) -> tuple[str, ...]:
        kept = self._kept()
        if not kept:
            return ()
        listed = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
        return (f"kept in F16, because their rows are not a whole number of blocks of 32: {listed}",)
