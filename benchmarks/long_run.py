"""What a long run needs in memory: `python benchmarks/long_run.py OUTPUT`; it takes three to six minutes.

Loads the scripted engine in a closed loop and samples the client's resident memory (Linux) every second,
during the load and while the report is made; prints a line per tenth of the load and writes OUTPUT.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from decant.files import write_json
from decant.hardware import provenance
from decant_bench.scripted_engine import MODEL, scripted_engine

_CLIENTS = 24
_ANSWER = {"chunks": ["one ", "two ", "three ", "four "], "ttft_s": 0.01, "gaps_s": [0.005]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the load and says what it took."""
    parser = argparse.ArgumentParser(prog="python benchmarks/long_run.py", description=__doc__)
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--limit-s", type=float, default=480.0, help="hard limit of the whole run")
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="decant-long-run-") as folder:
        samples = _watched(Path(folder), options.requests, limit_s=options.limit_s)
    load = [mib for mib, phase in samples if phase == "load"]
    document: dict[str, Any] = {
        "requests": options.requests,
        "load_rss_mib": load,
        "load_growth_mib": load[-1] - load[len(load) // 10] if load else None,
        "report_peak_mib": max((mib for mib, phase in samples if phase == "report"), default=None),
        **provenance(Path(__file__).parent),
    }
    write_json(options.output, document)
    if load:
        print(f"over the last nine tenths: {document['load_growth_mib']:+.1f} MiB")
    print(f"while the report is made, at most: {document['report_peak_mib']} MiB")
    return 0


def _watched(folder: Path, requests: int, *, limit_s: float) -> list[tuple[float, str]]:
    """Resident memory in MiB, and whether the load was on. TimeoutError when it is not done in time."""
    (folder / "script.json").write_text(json.dumps({"answers": [_ANSWER]}), encoding="utf-8")
    with scripted_engine(folder / "script.json") as engine:
        config = {
            "output": str(folder / "run"),
            "endpoint": {"base_url": f"{engine.address}/v1", "model": MODEL},
            "route": "completions",
            "workload": {"prompt_tokens": {"mean": 32}, "output_tokens": {"mean": 4}},
            "arrival": "closed",
            "concurrency": _CLIENTS,
            "requests": requests,
            "live": False,
        }
        (folder / "bench.json").write_text(json.dumps(config), encoding="utf-8")
        command = [sys.executable, "-m", "decant", "bench", "run", "--config", str(folder / "bench.json")]
        process = subprocess.Popen(command)
        try:
            return _samples(process, folder, requests, end_s=time.monotonic() + limit_s)
        finally:
            process.kill()
            process.wait()


def _samples(
    process: subprocess.Popen[bytes], folder: Path, requests: int, *, end_s: float
) -> list[tuple[float, str]]:
    answered, tenths = _Lines(folder), 0
    samples: list[tuple[float, str]] = []
    while process.poll() is None:
        if time.monotonic() > end_s:
            raise TimeoutError("the run was not done in time")
        time.sleep(1.0)
        done, mib = answered.count(), _resident_mib(process.pid)
        if not done or mib is None:
            continue
        samples.append((mib, "load" if done < 0.995 * requests else "report"))
        if samples[-1][1] == "load" and 10 * done // requests >= tenths:
            print(f"{10 * tenths:3d} % of the load: {mib:.0f} MiB", flush=True)
            tenths = 10 * done // requests + 1
    if process.returncode not in (0, 3):
        raise RuntimeError(f"the run ended with exit code {process.returncode}")
    return samples


class _Lines:
    """How many requests were answered: each is a line in a file of the folder in which the run works."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_bytes = 0
        self._lines = 0

    def count(self) -> int:
        """Lines so far."""
        for path in self._folder.glob("*/requests.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read_bytes)
                while block := file.read(2**20):
                    self._read_bytes += len(block)
                    self._lines += block.count(b"\n")
        return self._lines


def _resident_mib(pid: int) -> float | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")]
    return int(found[0]) / 1024 if found else None


if __name__ == "__main__":
    sys.exit(main())
