"""llama.cpp's own encoders of block formats, called in the shared library that its Python packages bring.

xllamacpp and llama-cpp-python both export ggml's C interface, so that K-quants and IQ formats need neither a
llama.cpp binary nor an F16 file in between.
"""

import ctypes
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decant.errors import MissingExtraError, QuantizeError

_ASK_LIMIT_S = 60.0
# Packages that bring the library, and where in them it lies.
_PLACES = (("xllamacpp", "xllamacpp*.so"), ("llama_cpp", "lib/libggml-base.*"))
_FIND = "import importlib.util as i,sys;s=i.find_spec(sys.argv[1]);print(s.origin if s else '')"


@dataclass(frozen=True, slots=True)
class Ggml:
    """An open library; formats are named as in `gguf.GGMLQuantizationType`."""

    path: Path
    calls: Mapping[str, Callable[..., Any]]

    def start(self, name: str) -> None:
        """Builds the format's tables, once, before several threads encode in it."""
        block, size_bytes = block_of(name)
        known = self.calls["ggml_blck_size"](_number(name)), self.calls["ggml_type_size"](_number(name))
        if known != (block, size_bytes):
            raise QuantizeError(
                f"{self.path}: its {name} is not the format that the gguf package knows; install the same"
                f" release of both"
            )
        self.calls["ggml_quantize_init"](_number(name))

    def encode(
        self, rows: NDArray[np.float32], name: str, importance: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        """Rows [R, C] as bytes [R, bytes of a row]; `importance` [C] weighs each column's squared error."""
        block, size_bytes = block_of(name)
        rows = np.ascontiguousarray(rows, np.float32)
        count, columns = rows.shape
        encoded = np.empty((count, columns // block * size_bytes), np.uint8)
        weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
        assert weights is None or weights.shape == (columns,)
        written = self.calls["ggml_quantize_chunk"](
            _number(name),
            rows.ctypes.data,
            encoded.ctypes.data,
            0,
            count,
            columns,
            None if weights is None else weights.ctypes.data,
        )
        assert written == encoded.nbytes
        return encoded


def open_ggml(python: Path | None) -> Ggml:
    """The library of this interpreter's packages, or of another's; an error that says what to install."""
    found = _find(python)
    if found is None and python is None:
        raise MissingExtraError("xllamacpp", "llamacpp")
    if found is None:
        raise QuantizeError(f"{python}: has neither xllamacpp nor llama_cpp; pip install xllamacpp there")
    try:
        calls = _declared(ctypes.CDLL(str(found)))
    except (OSError, AttributeError) as error:
        raise QuantizeError(
            f"{found}: is no ggml library that can be called here ({error}); pip install xllamacpp"
        ) from None
    return Ggml(found, calls)


def block_of(name: str) -> tuple[int, int]:
    """Values and bytes of one block of a format."""
    import gguf

    values, size_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    return values, size_bytes


def _number(name: str) -> int:
    import gguf

    return int(gguf.GGMLQuantizationType[name])


def _find(python: Path | None) -> Path | None:
    for package, pattern in _PLACES:
        origin = _origin(package, python)
        files = sorted(Path(origin).parent.glob(pattern)) if origin else []
        if files:
            return files[0]
    return None


def _origin(package: str, python: Path | None) -> str:
    """Where an interpreter would import the package from; empty when it has none."""
    if python is None or python == Path(sys.executable):
        spec = importlib.util.find_spec(package)
        return (spec.origin or "") if spec else ""
    command = [str(python), "-c", _FIND, package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise QuantizeError(
            f"{python}: no Python interpreter that answers ({error}); correct --python"
        ) from None
    return done.stdout.strip()


def _declared(library: ctypes.CDLL) -> Mapping[str, Callable[..., Any]]:
    """The functions that are called here, with their C signatures; AttributeError for a missing one."""
    integer, pointer, count = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ggml_quantize_chunk": (
            ctypes.c_size_t,
            [integer, pointer, pointer, count, count, count, pointer],
        ),
        "ggml_quantize_init": (None, [integer]),
        "ggml_blck_size": (ctypes.c_int64, [integer]),
        "ggml_type_size": (ctypes.c_size_t, [integer]),
    }
    calls: dict[str, Callable[..., Any]] = {}
    for name, (result, arguments) in signatures.items():
        function = library[name]
        function.restype, function.argtypes = result, arguments
        calls[name] = function
    return calls
