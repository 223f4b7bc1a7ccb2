"""`gptqmodel`, `autoround` and `llmcompressor:SCHEME`: other libraries' quantizers, each in an interpreter
that has it, on the same rows and behind the same measurements as our own methods.
"""

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.errors import QuantizeError
from decant.files import write_json
from decant.processes import end_with_parent
from decant_quant.checkpoint import open_checkpoint
from decant_quant.method import Written
from decant_quant.methods.folder import copy_side_files
from decant_quant.methods.gptq.checks import quantized_names, refuse_shapes
from decant_quant.methods.measuring import Measuring, Report, prepare_measuring
from decant_quant.methods.restorable import open_restorable
from decant_quant.methods.rounding import Activations
from decant_quant.options import GptqConfig, Options

_CHILD = Path(__file__).with_name("backend_child.py")
_JOB, _LOG = "job.json", "backend.log"
_ASK_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Backend:
    """One library: its package, how it is installed, and the bits that its files are read in here."""

    library: str
    package: str
    install: str
    bits: tuple[int, ...]


_GPTQMODEL = Backend("gptqmodel", "gptqmodel", "gptqmodel", (2, 3, 4, 8))
_AUTOROUND = Backend("autoround", "auto_round", "auto-round", (4, 8))
_LLMCOMPRESSOR = Backend("llmcompressor", "llmcompressor", "llmcompressor", (4, 8))
# The form of each scheme: bits per weight, and what engines round the inputs to.
_SCHEMES: Mapping[str, tuple[int | None, Activations | None]] = {
    "W4A16": (None, None),
    "W8A8": (8, "int8"),
    "FP8": (8, "fp8"),
}


def build_gptqmodel(_variant: str, options: Options) -> "BackendMethod":
    """The method behind `gptqmodel`."""
    return BackendMethod(_GPTQMODEL, "", options)


def build_autoround(_variant: str, options: Options) -> "BackendMethod":
    """The method behind `autoround`."""
    return BackendMethod(_AUTOROUND, "", options)


def build_llmcompressor(variant: str, options: Options) -> "BackendMethod":
    """The method behind `llmcompressor:<variant>`."""
    return BackendMethod(_LLMCOMPRESSOR, variant, options)


@dataclass(frozen=True, slots=True)
class BackendMethod:
    """Quantizes with another library, on the grid of the `gptq` table."""

    backend: Backend
    scheme: str
    options: Options

    def prepare(self, model: Path) -> "BackendRun":
        """Asks the interpreter for its library, checks the checkpoint and chooses the rows."""
        if self.options.layout is not None:
            raise QuantizeError(f"{self.backend.library} writes its own layout; leave --layout out")
        bits, activations = _SCHEMES.get(self.scheme, (None, None))
        grid = self.options.gptq if bits is None else GptqConfig(bits=8, group_size=-1)
        if grid.bits not in self.backend.bits:
            raise QuantizeError(
                f"{self.backend.library} in {grid.bits} bits is not read here, only in"
                f" {', '.join(map(str, self.backend.bits))}; set gptq.bits"
            )
        python = str(self.options.python or sys.executable)
        _require(python, self.backend)
        measuring = prepare_measuring(open_checkpoint(model), self.options, calibrates=True)
        refuse_shapes(measuring.decoder, grid)
        return BackendRun(self, measuring, grid, activations, python)


@dataclass(frozen=True, slots=True)
class BackendRun:
    """A checked checkpoint, its rows, and the interpreter that will quantize it."""

    method: BackendMethod
    measuring: Measuring
    grid: GptqConfig
    activations: Activations | None
    python: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights; 16 bits for each is more than any of them writes."""
        return sum(2 * math.prod(shape) + 4096 for shape in self.measuring.decoder.shapes.values())

    def write(self, folder: Path) -> Written:
        """Runs the library, reads its files back and measures them; QuantizeError with its last line when it
        fails, ParityError when the files no longer say what the golden prompts say.
        """
        self._run(folder)
        copy_side_files(self.measuring.checkpoint.folder, folder)
        written, rounded = open_restorable(folder), self.activations
        measured = self.measuring.measure(written.read, activations=rounded)
        tolerance = "q4" if self.grid.bits < 8 else "q8"
        golden = self.measuring.check_golden(written.read, folder, tolerance=tolerance, activations=rounded)
        golden.raise_if_broken()
        report = Report(
            self._name(),
            measured,
            restored_by="the written codes, restored exactly and run in torch",
            details={"golden": golden.model_dump(mode="json"), "backend": self._version()},
        )
        counts = Counter(
            "codes" if name in quantized_names(self.measuring.decoder) else "F16" for name in written.names
        )
        return Written(
            kind="hf",
            measurements={"tensor_types": dict(counts), **report.write(folder, self.measuring)},
            notes=(measured.quality.sentence(),),
            golden=golden,
        )

    def done(self) -> None:
        """There is nothing to clear."""

    def _name(self) -> str:
        scheme = self.method.scheme or f"{self.grid.bits} bits"
        return f"{self.method.backend.library}, {scheme}"

    def _version(self) -> str:
        ask = f"import importlib.metadata as m; print(m.version('{self.method.backend.install}'))"
        done = subprocess.run(
            [self.python, "-c", ask], capture_output=True, text=True, timeout=_ASK_LIMIT_S, check=False
        )
        return f"{self.method.backend.install} {done.stdout.strip()}"

    def _run(self, folder: Path) -> None:
        job: dict[str, Any] = {
            "library": self.method.backend.library,
            "scheme": self.method.scheme,
            "model": str(self.measuring.checkpoint.folder.absolute()),
            "output": str(folder.absolute()),
            "rows": [list(row.token_ids) for row in self.measuring.rows.calibration],
            "bits": self.grid.bits,
            "group_size": self.grid.group_size,
            "sym": self.grid.sym,
        }
        # Beside the output: what a library finds in its output folder it may take for its own.
        desk = folder.with_name(f"{folder.name}.backend")
        desk.mkdir()
        try:
            write_json(desk / _JOB, job)
            _quantize([self.python, str(_CHILD), str(desk / _JOB)], desk / _LOG, self._name())
        finally:
            for file in desk.iterdir():
                file.unlink()
            desk.rmdir()


def _require(python: str, backend: Backend) -> None:
    """Looks for the library without importing it, which may take ten seconds."""
    ask = f"import importlib.util as u, sys; sys.exit(u.find_spec('{backend.package}') is None)"
    try:
        done = subprocess.run([python, "-c", ask], capture_output=True, timeout=_ASK_LIMIT_S, check=False)
        found = done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        found = False
    if not found:
        raise QuantizeError(
            f"{python} has no {backend.package}: make an environment with it (`pip install"
            f" {backend.install}`, see quant/README.md) and name its interpreter with --python"
        )


def _quantize(command: list[str], log: Path, name: str) -> None:
    """Runs the child to its end, its words in a file: they may be more than a pipe holds."""
    with log.open("wb") as said:
        done = subprocess.run(command, stdout=said, stderr=said, check=False, preexec_fn=end_with_parent())
    if done.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = lines[-1].strip() if lines else f"exit code {done.returncode}"
        raise QuantizeError(
            f"{name} ended with: {reason}; our own gptq, awq, w8a8 and fp8 need no other library"
        )
