"""A GGUF file to measure with where none is at hand."""

import subprocess
import sys
from pathlib import Path

_BENCHMARKS = Path(__file__).parent.parent
_TOKENIZER = _BENCHMARKS.parent / "distill" / "decant_distill" / "demo" / "weights" / "teacher"
# 8 layers of width 512: some 33 M parameters.
_SIZE = ("--layers", "8", "--width", "512", "--inner", "2048", "--heads", "8")
_LIMIT_S = 120.0


def random_gguf(folder: Path) -> Path:
    """Makes a random Llama with the demo's tokenizer and writes it as GGUF with weights of 8 bits."""
    made, output = folder / "random", folder / "random-q8_0"
    script = str(_BENCHMARKS / "quant" / "random_model.py")
    for command in (
        [sys.executable, script, str(_TOKENIZER), str(made), *_SIZE],
        [
            sys.executable,
            "-m",
            "decant",
            "quantize",
            str(made),
            "--output",
            str(output),
            "--method",
            "gguf:Q8_0",
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    (found,) = output.glob("*.gguf")
    return found
