"""What a long run needs in memory: `python benchmarks/long_run.py OUTPUT [REQUESTS]`.

Loads the scripted engine in a closed loop and samples the client's resident memory (Linux) every second,
during the load and while the report is made; writes OUTPUT and prints a line per tenth of the load.
"""

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

_REQUESTS = 100_000
_CLIENTS = 64
_ANSWER = {"chunks": ["one ", "two ", "three ", "four "], "ttft_s": 0.002, "gaps_s": [0.001]}


def main(arguments: Sequence[str]) -> int:
    """Runs the load and says what it took."""
    output = Path(arguments[0])
    requests = int(arguments[1]) if len(arguments) > 1 else _REQUESTS
    with TemporaryDirectory(prefix="decant-long-run-") as folder:
        samples = _watched(Path(folder), requests)
    load = [mib for mib, phase in samples if phase == "load"]
    document: dict[str, Any] = {
        "requests": requests,
        "load_rss_mib": load,
        "load_growth_mib": load[-1] - load[len(load) // 10] if load else None,
        "report_peak_mib": max((mib for mib, phase in samples if phase == "report"), default=None),
        **provenance(Path(__file__).parent),
    }
    write_json(output, document)
    for tenth in range(10):
        if load:
            print(f"{10 * tenth:3d} % of the load: {load[tenth * len(load) // 10]:.0f} MiB")
    print(f"over the last nine tenths: {document['load_growth_mib']:+.1f} MiB")
    print(f"while the report is made: {document['report_peak_mib']} MiB")
    return 0


def _watched(folder: Path, requests: int) -> list[tuple[float, str]]:
    """Resident memory in MiB, and whether the load was on."""
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
        samples: list[tuple[float, str]] = []
        while process.poll() is None:
            if (phase := _phase(folder, requests)) and (mib := _resident_mib(process.pid)):
                samples.append((mib, phase))
            time.sleep(1.0)
    return samples


def _phase(folder: Path, requests: int) -> str:
    # The run works in a folder beside its output; each answered request is a line there.
    for file in folder.glob("*/requests.jsonl"):
        with file.open("rb") as lines:
            return "load" if sum(1 for _ in lines) < 0.995 * requests else "report"
    return ""


def _resident_mib(pid: int) -> float | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")]
    return int(found[0]) / 1024 if found else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
