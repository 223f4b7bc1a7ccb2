"""`gguf:Q4_K_M` and its kin: our F16 file, quantized by llama.cpp in an interpreter that has it."""

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from decant.errors import MissingExtraError, QuantizeError
from decant.processes import end_with_parent
from decant_quant.method import Written
from decant_quant.methods.gguf_method import FILE, GgufConversion, GgufMethod
from decant_quant.methods.gguf_restored import open_restored
from decant_quant.methods.gguf_types import MIXES
from decant_quant.methods.measuring import Measuring, Report, measuring_if_asked
from decant_quant.options import Options

_CHILD = Path(__file__).with_name("kquant_child.py")
_SOURCE = "f16.gguf"
_ASK_LIMIT_S = 60.0
# Values in a block: rows that are no whole number of them get another type from llama.cpp.
_BLOCK = 256


def build(variant: str, options: Options) -> "KquantMethod":
    """The method that writes `gguf:<variant>`; QuantizeError when no interpreter has llama-cpp-python."""
    try:
        import gguf as _  # noqa: F401
    except ImportError:
        raise MissingExtraError("gguf", "gguf") from None
    return KquantMethod(variant, options)


@dataclass(frozen=True, slots=True)
class KquantMethod:
    """Writes GGUF files in llama.cpp's block formats of 256 values."""

    variant: str
    options: Options

    def prepare(self, model: Path) -> "KquantRun":
        """Plans the F16 file, and asks the interpreter for its llama.cpp."""
        python = str(self.options.python or sys.executable)
        _require_llama_cpp(python, self.variant)
        inner = GgufMethod(MIXES["F16"]).prepare(model)
        return KquantRun(inner, self.variant, python, measuring_if_asked(inner.checkpoint, self.options))


@dataclass(frozen=True, slots=True)
class KquantRun:
    """A checked checkpoint, and the interpreter that will quantize its F16 file."""

    inner: GgufConversion
    variant: str
    python: str
    measuring: Measuring | None

    @property
    def size_bytes(self) -> int:
        """Bytes on disk while it works: the F16 file and, at most as large, the quantized one."""
        return 2 * self.inner.size_bytes

    def write(self, folder: Path) -> Written:
        """Writes F16, quantizes it, and removes it; QuantizeError with llama.cpp's last line if it cannot."""
        import gguf

        written = self.inner.write(folder)
        (folder / FILE).rename(folder / _SOURCE)
        _quantize(self.python, folder / _SOURCE, folder / FILE, self.variant)
        (folder / _SOURCE).unlink()
        counts = Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(folder / FILE).tensors)
        measurements, notes = {"tensor_types": dict(counts)}, (*written.notes, *self._fallback_notes())
        if self.measuring is None:
            return Written(kind="gguf", measurements=measurements, notes=notes)
        restored = open_restored(folder / FILE, [tensor for tensor, _ in self.inner.tensors])
        measured = self.measuring.measure(restored.read)
        how = "the file's weights, restored by the gguf package and run in torch"
        report = Report(f"gguf:{self.variant}", measured, restored_by=how)
        return Written(
            kind="gguf",
            measurements={**measurements, **report.write(folder, self.measuring)},
            notes=(*notes, measured.quality.sentence()),
        )

    def done(self) -> None:
        """There is nothing to clear."""

    def _fallback_notes(self) -> tuple[str, ...]:
        other = [t.name for t, _ in self.inner.tensors if t.is_matrix and t.source.shape[-1] % _BLOCK]
        if not other:
            return ()
        first = f"{len(other)} matrices, {other[0]} first, have rows that are not a whole number of blocks of"
        return (f"{first} {_BLOCK}: llama.cpp gave them another type",)


def _require_llama_cpp(python: str, variant: str) -> None:
    command = [python, "-c", "import llama_cpp"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_ASK_LIMIT_S, check=False)
        found = done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        found = False
    if not found:
        raise QuantizeError(
            f"gguf:{variant} is made by llama.cpp itself, and {python} has no llama_cpp: pip install"
            f" llama-cpp-python there, or name an interpreter that has it with --python"
        )


def _quantize(python: str, source: Path, target: Path, variant: str) -> None:
    command = [python, str(_CHILD), str(source), str(target), variant]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=end_with_parent())
    if done.returncode != 0 or not target.is_file():
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise QuantizeError(f"llama.cpp could not write gguf:{variant}: {said[-1]}")
