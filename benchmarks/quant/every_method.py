"""Quantizes one model with every method and prints a Markdown table: size, time, memory, loss.

`python benchmarks/quant/every_method.py MODEL --data ROWS --heldout ROWS --output FOLDER`. Every method is
`decant quantize` in a process of its own, so time and peak memory (RSS) are the command's; its trial in the
engine counts in the time and not in the memory. A method that refuses the model is a row with its reason.
On the bundled teacher a method takes 5 to 10 s on two cores, one of `--recover` a minute; `--set speed=true`
adds 2 s.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.files import write_json
from decant.hardware import provenance
from decant_quant.method import GGUF_VARIANTS

_GPTQ = tuple(
    (f"gptq:{bits}{suffix}", ["--method", "gptq", "--set", f"gptq.bits={bits}", *more])
    for bits in (8, 4, 3, 2)
    for suffix, more in (("", ()), ("+recover", ("--recover",)))
    if bits < 8 or not suffix
)
METHODS: dict[str, list[str]] = {
    **{name: ["--method", name] for name in ("hf:F16", "hf:BF16", "bnb:INT8", "bnb:NF4")},
    **{f"gguf:{t}": ["--method", f"gguf:{t}"] for t in GGUF_VARIANTS if t != "F32"},
    **{
        f"gguf:{t}, unweighed": ["--method", f"gguf:{t}", "--set", "gguf.importance=off"]
        for t in GGUF_VARIANTS
        if not t.startswith(("F", "BF", "Q8", "IQ2", "IQ1"))
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
    golden: str


def quantize(name: str, arguments: argparse.Namespace) -> Outcome:
    """Runs one method and reads what it measured."""
    output: Path = arguments.output / name.replace(":", "-").replace(", ", "-")
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
    told = log.read_text(encoding="utf-8", errors="replace")
    lines = told.strip().splitlines() or [""]
    failed = lines[-1] if child.returncode else ""
    report = output / "quality.json"
    quality = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else None
    # Linux counts kibibytes.
    return Outcome(name, wall_s, usage.ru_maxrss * 1024, quality, failed, _golden(told))


HEAD = (
    "| method | MB | s | peak MB | perplexity | mean KL (95 %) | p99 | same top | flips | golden |"
    " prefill, tokens/s | decode, tokens/s |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(found: Outcome) -> str:
    """One line of the Markdown table."""
    if found.quality is None:
        return f"| {found.name} | refused: {found.said} | | | | | | | | | | |"
    held = found.quality["heldout"]
    recovery: dict[str, Any] = found.quality.get("recovery") or {}
    kept = recovery.get("kept")
    name = f"{found.name} ({'kept' if kept else 'not kept'})" if "recover" in found.name else found.name
    return (
        f"| {name} | {found.quality['size_bytes'] / 1e6:.2f} | {found.wall_s:.1f}"
        f" | {found.peak_rss_bytes / 1e6:.0f} | {held['perplexity']:.4g} | {held['kl_mean']:.2g}"
        f" ({held['kl_mean_low']:.2g} to {held['kl_mean_high']:.2g}) | {held['kl_p99']:.2g}"
        f" | {held['top1_agreement']:.2%} | {held['flips']:.2%} | {found.golden} | {_speeds(found.quality)} |"
    )


def _speeds(quality: dict[str, Any]) -> str:
    speed = quality.get("speed")
    if speed is None:
        return "– | –"
    rates = (speed["prefill_tokens_per_s"], speed["decode_tokens_per_s"])
    return " | ".join(f"{r['median']:.4g} ({r['low']:.4g} to {r['high']:.4g})" for r in rates)


def _golden(told: str) -> str:
    """How many golden prompts the engine reproduced, as the command said it."""
    found = re.search(r"golden prompts: (\d+) reproduced", told)
    return found[1] if found else "–"


def main() -> None:
    """Runs the methods one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    for name in ("data", "heldout", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--limit-s", type=float, default=900.0, help="no method is begun after so long")
    parser.add_argument("--set", action="append", default=[], help="for decant quantize, key=value")
    for name in (*_LIBRARIES, "vllm"):
        parser.add_argument(f"--{name}", type=Path, help="its interpreter; vllm: load what it loads, too")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    give_up_at = time.monotonic() + arguments.limit_s
    asked = [
        name for name in arguments.methods if vars(arguments).get(name.partition(":")[0], "") is not None
    ]
    outcomes: list[Outcome] = []
    print(HEAD)
    for name in asked:
        if time.monotonic() > give_up_at:
            print(f"stopped before {name}: {arguments.limit_s:.0f} s are over (--limit-s)")
            break
        outcomes.append(quantize(name, arguments))
        print(row(outcomes[-1]), flush=True)
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


if __name__ == "__main__":
    main()
