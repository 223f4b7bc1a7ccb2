"""Our GPTQ beside gptqmodel's and llm-compressor's: same model, same rows, each in a process of its own.

`python benchmarks/quant/peers.py speed --gptqmodel PYTHON --llmcompressor PYTHON --output FOLDER` makes a
random Llama (709 M: 16 layers, width 2048) and times W4 g128 on 32 rows of 256 tokens: about 11 minutes on
two cores, of which the peers take 8. `... kl --model MODEL --data ROWS --heldout ROWS` compares the
divergence on a trained model over calibration seeds: about 5 minutes for the bundled teacher. `... layers`
compares our peak memory at 4 and 16 layers: about 3 minutes. Rows are printed as they come; a side that
passes --limit seconds is stopped.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from decant.artifact import read_manifest
from decant.files import write_json
from decant.hardware import provenance

_HERE = Path(__file__).parent
_CHILD = _HERE.parent.parent / "quant" / "decant_quant" / "methods" / "backend_child.py"
_TOKENIZER = _HERE.parent.parent / "distill" / "decant_distill" / "demo" / "weights" / "teacher"
_ROWS, _TOKENS = 32, 256
_WORDS = ("kettle", "street", "breakfast", "sings", "seven", "train", "window", "garden", "letter", "morning")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process took; `wall_s` and `cpu_s` include its imports, `rss_bytes` is its peak."""

    side: str
    wall_s: float
    cpu_s: float
    rss_bytes: int
    failed: str | None


def timed(side: str, command: Sequence[str], *, log: Path, limit_s: float) -> Cost:
    """Runs one side to its end or its limit; its words go to `log`."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    with log.open("wb") as said:
        child = subprocess.Popen(
            ["timeout", f"{limit_s:.0f}", *command], stdout=said, stderr=said, env=environment
        )
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - started
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    failed = lines[-1][:200] if child.returncode else None
    # Linux counts kibibytes.
    return Cost(side, wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, failed)


def random_model(output: Path, *, layers: int, width: int, inner: int) -> Path:
    """A random Llama; an older one of the same shape is taken as it is."""
    folder = output / f"llama-{layers}-{width}"
    if not (folder / "config.json").is_file():
        sizes = ["--layers", str(layers), "--width", str(width), "--inner", str(inner)]
        script = [sys.executable, str(_HERE / "random_model.py"), str(_TOKENIZER), str(folder), *sizes]
        subprocess.run(script, check=True)
    return folder


def _text(output: Path) -> Path:
    """Seeded text that is long enough for all rows of any tokenizer."""
    chosen = random.Random(0)
    path = output / "text.txt"
    path.write_text(" ".join(chosen.choice(_WORDS) for _ in range(20 * _ROWS * _TOKENS)), encoding="utf-8")
    return path


def _ours(model: Path, output: Path, *options: str) -> list[str]:
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "decant", "quantize", str(model), "--output", str(output)]
    return [*command, *options]


def _settings(pairs: dict[str, Any]) -> list[str]:
    return [part for key, value in pairs.items() for part in ("--set", f"{key}={value}")]


def _our_speed(model: Path, arguments: argparse.Namespace) -> tuple[Cost, float]:
    """The whole command, and the seconds of it that went into measuring, which the peers do not do."""
    output = arguments.output / "ours"
    rows = {
        "calibration.dataset": _text(arguments.output),
        "calibration.rows": _ROWS,
        "calibration.heldout_rows": 1,
        "calibration.max_tokens": _TOKENS,
    }
    command = _ours(model, output, "--method", "gptq", *_settings(rows))
    cost = timed("decant", command, log=arguments.output / "decant.log", limit_s=arguments.limit)
    if cost.failed:
        return cost, 0.0
    return cost, float(read_manifest(output).measurements["seconds"]["measure_and_recover"])


def speed(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time and peak memory on a random model."""
    model = random_model(
        arguments.output, layers=arguments.layers, width=arguments.width, inner=arguments.inner
    )
    print("| side | s | CPU s | peak MB | note |\n|---|---|---|---|---|", flush=True)
    chosen = random.Random(0)
    rows = [[chosen.randrange(10, 400) for _ in range(_TOKENS)] for _ in range(_ROWS)]
    found: list[dict[str, Any]] = []
    cost, measuring_s = _our_speed(model, arguments)
    note = (
        cost.failed
        or f"{measuring_s:.1f} s of it reading back and measuring; {cost.wall_s - measuring_s:.1f} without"
    )
    found.append({**asdict(cost), "measuring_s": measuring_s})
    _print(cost, note)
    for side in ("gptqmodel", "llmcompressor"):
        python = vars(arguments)[side]
        if python is None:
            continue
        output = arguments.output / side
        shutil.rmtree(output, ignore_errors=True)
        job = {"library": side, "scheme": "W4A16", "model": str(model.absolute()), "rows": rows}
        job |= {"output": str(output.absolute()), "bits": 4, "group_size": 128, "sym": True}
        write_json(arguments.output / f"{side}.json", job)
        command = [str(python), str(_CHILD), str(arguments.output / f"{side}.json")]
        cost = timed(side, command, log=arguments.output / f"{side}.log", limit_s=arguments.limit)
        found.append(asdict(cost))
        _print(cost, cost.failed or "")
    return found


def _print(cost: Cost, note: str) -> None:
    print(
        f"| {cost.side} | {cost.wall_s:.1f} | {cost.cpu_s:.1f} | {cost.rss_bytes / 1e6:.0f} | {note} |",
        flush=True,
    )


def kl(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Divergence on a trained model: the same rows, read back and measured by the same code."""
    print("| bits | side | seed | mean KL (95 %) | p99 | same top |\n|---|---|---|---|---|---|", flush=True)
    more = [part for item in arguments.set for part in ("--set", item)]
    found: list[dict[str, Any]] = []
    for bits in arguments.bits:
        for seed in arguments.seeds:
            for side, options in _sides(arguments, bits):
                name = f"{side}-{bits}-{seed}".replace(":", "-")
                rows = {
                    "calibration.dataset": arguments.data,
                    "calibration.heldout": arguments.heldout,
                    "calibration.rows": arguments.rows,
                    "calibration.heldout_rows": arguments.heldout_rows,
                    "calibration.seed": seed,
                    "gptq.bits": bits,
                }
                output = arguments.output / name
                command = _ours(arguments.model, output, *options, *_settings(rows), *more)
                cost = timed(name, command, log=arguments.output / f"{name}.log", limit_s=arguments.limit)
                found.append(_kl_row(bits, side, seed, output, cost))
    return found


def _sides(arguments: argparse.Namespace, bits: int) -> list[tuple[str, list[str]]]:
    sides = [("gptq", ["--method", "gptq"]), ("gptq+recover", ["--method", "gptq", "--recover"])]
    if arguments.gptqmodel:
        sides.append(("gptqmodel", ["--method", "gptqmodel", "--python", str(arguments.gptqmodel)]))
    if arguments.llmcompressor and bits == 4:
        sides.append(
            ("llmcompressor", ["--method", "llmcompressor:W4A16", "--python", str(arguments.llmcompressor)])
        )
    return sides


def _kl_row(bits: int, side: str, seed: int, output: Path, cost: Cost) -> dict[str, Any]:
    if cost.failed:
        print(f"| {bits} | {side} | {seed} | failed: {cost.failed} | | |", flush=True)
        return {"bits": bits, "side": side, "seed": seed, "failed": cost.failed}
    quality = json.loads((output / "quality.json").read_text(encoding="utf-8"))
    held, recovery = quality["heldout"], quality.get("recovery")
    kept = f" ({'kept' if recovery['kept'] else 'not kept'})" if recovery else ""
    print(
        f"| {bits} | {side}{kept} | {seed} | {held['kl_mean']:.3g} ({held['kl_mean_low']:.2g} to"
        f" {held['kl_mean_high']:.2g}) | {held['kl_p99']:.2g} | {held['top1_agreement']:.2%} |",
        flush=True,
    )
    return {"bits": bits, "side": side, "seed": seed, "heldout": held, "recovery": recovery}


def layers(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Our peak memory with 4 times the layers, on otherwise the same model."""
    found: list[dict[str, Any]] = []
    print("| layers | s | CPU s | peak MB | note |\n|---|---|---|---|---|", flush=True)
    for count in (arguments.layers // 4, arguments.layers):
        model = random_model(arguments.output, layers=count, width=arguments.width, inner=arguments.inner)
        cost, _ = _our_speed(model, arguments)
        cost = Cost(str(count), cost.wall_s, cost.cpu_s, cost.rss_bytes, cost.failed)
        _print(cost, cost.failed or "")
        found.append(asdict(cost))
    few, many = (item["rss_bytes"] for item in found)
    print(f"\n{many / few - 1:+.1%} with 4 times the layers")
    return found


def main() -> None:
    """Runs one of the comparisons and leaves its numbers as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["speed", "kl", "layers"])
    parser.add_argument("--output", type=Path, required=True)
    for name in ("gptqmodel", "llmcompressor", "model", "data", "heldout"):
        parser.add_argument(f"--{name}", type=Path)
    sizes = {"layers": 16, "width": 2048, "inner": 4480, "rows": 128, "heldout-rows": 100, "limit": 300}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="kl: for decant quantize, key=value")
    arguments = parser.parse_args()
    if arguments.what == "kl" and not (arguments.model and arguments.data and arguments.heldout):
        parser.error("kl needs --model, --data and --heldout")
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = {"speed": speed, "kl": kl, "layers": layers}[arguments.what](arguments)
    write_json(arguments.output / f"{arguments.what}.json", {**provenance(Path(__file__)), "rows": rows})


if __name__ == "__main__":
    main()
