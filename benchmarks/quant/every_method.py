"""Quantizes one model with every method and prints a Markdown table: size, time, memory, loss.

`python benchmarks/quant/every_method.py MODEL --data ROWS --heldout ROWS --output FOLDER`. Every method is
`decant quantize` in a process of its own, so time and peak memory (RSS) are the command's; its trial in the
engine counts in the time and not in the memory. A method that refuses the model is a row with its reason.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.files import write_json
from decant.hardware import provenance

_GPTQ = tuple(
    (f"gptq:{bits}{suffix}", ["--method", "gptq", "--set", f"gptq.bits={bits}", *more])
    for bits in (8, 4, 3, 2)
    for suffix, more in (("", ()), ("+recover", ("--recover",)))
    if bits < 8 or not suffix
)
METHODS: dict[str, list[str]] = {
    **{name: ["--method", name] for name in ("hf:F16", "hf:BF16", "bnb:INT8", "bnb:NF4")},
    **{
        f"gguf:{t}": ["--method", f"gguf:{t}"]
        for t in ("F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
    },
    **dict(_GPTQ),
    **{
        name: ["--method", name]
        for name in (
            *("awq", "w8a8", "fp8", "gptqmodel", "autoround"),
            *("llmcompressor:W4A16", "llmcompressor:W8A8", "llmcompressor:FP8"),
        )
    },
}
# Libraries in environments of their own: methods that need one are left out where no interpreter is named.
_LIBRARIES = ("gptqmodel", "autoround", "llmcompressor")
# What vLLM 0.32 loads on a CPU.
_VLLM = frozenset(("hf:F16", "gptq:4", "awq", "gptqmodel", "llmcompressor:W4A16"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One method's run; `said` is its last line when it ended with an error."""

    name: str
    wall_s: float
    peak_rss_bytes: int
    quality: dict[str, Any] | None
    said: str


def quantize(name: str, arguments: argparse.Namespace) -> Outcome:
    """Runs one method and reads what it measured."""
    output: Path = arguments.output / name.replace(":", "-")
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "decant", "quantize", str(arguments.model), "--output", str(output)]
    command += [*METHODS[name], "--set", f"calibration.dataset={arguments.data}"]
    command += ["--set", f"calibration.heldout={arguments.heldout}"]
    library = name.partition(":")[0]
    if library in _LIBRARIES:
        command += ["--python", str(vars(arguments)[library])]
    if name in _VLLM and arguments.vllm is not None:
        command += ["--engine-python", str(arguments.vllm)]
    command += [part for item in arguments.set for part in ("--set", item)]
    log = arguments.output / f"{output.name}.log"
    started = time.perf_counter()
    with log.open("wb") as said:
        child = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - started
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    report = output / "quality.json"
    quality = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else None
    # Linux counts kibibytes.
    return Outcome(name, wall_s, usage.ru_maxrss * 1024, quality, lines[-1] if child.returncode else "")


def table(outcomes: Sequence[Outcome]) -> str:
    """The Markdown table."""
    lines = [
        "| method | MB | s | peak MB | perplexity | mean KL (95 %) | p99 | same top | flips |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for found in outcomes:
        if found.quality is None:
            lines.append(f"| {found.name} | refused: {found.said} | | | | | | | |")
            continue
        held = found.quality["heldout"]
        recovery: dict[str, Any] = found.quality.get("recovery") or {}
        kept = recovery.get("kept")
        name = f"{found.name} ({'kept' if kept else 'not kept'})" if "recover" in found.name else found.name
        lines.append(
            f"| {name} | {found.quality['size_bytes'] / 1e6:.2f} | {found.wall_s:.1f}"
            f" | {found.peak_rss_bytes / 1e6:.0f} | {held['perplexity']:.4g} | {held['kl_mean']:.2g}"
            f" ({held['kl_mean_low']:.2g} to {held['kl_mean_high']:.2g}) | {held['kl_p99']:.2g}"
            f" | {held['top1_agreement']:.2%} | {held['flips']:.2%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the methods one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    for name in ("data", "heldout", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--set", action="append", default=[], help="for decant quantize, key=value")
    for name in (*_LIBRARIES, "vllm"):
        parser.add_argument(f"--{name}", type=Path, help="its interpreter; vllm: load what it loads, too")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    asked = [
        name for name in arguments.methods if vars(arguments).get(name.partition(":")[0], "") is not None
    ]
    outcomes = [quantize(name, arguments) for name in asked]
    rows = [
        {
            "method": found.name,
            "wall_s": found.wall_s,
            "peak_rss_bytes": found.peak_rss_bytes,
            "said": found.said,
            "quality": found.quality,
        }
        for found in outcomes
    ]
    write_json(arguments.output / "methods.json", {**provenance(Path(__file__)), "rows": rows})
    print(table(outcomes))


if __name__ == "__main__":
    main()
