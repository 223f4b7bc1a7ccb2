"""Where a number was measured: the machine, the library versions, the commit and the command."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_REPORTED = (
    "decant",
    "httpx",
    "numpy",
    "torch",
    "transformers",
    "peft",
    "xllamacpp",
    "gguf",
    "vllm",
    "scikit-learn",
)
_GIB = 2**30


def describe_machine() -> dict[str, Any]:
    """CPU, cores that this process may use, memory, GPUs (by the NVIDIA driver) and operating system."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(Path("/proc/cpuinfo")),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gib": round(pages / _GIB, 1),
        "gpus": _gpu_models(Path("/proc/driver/nvidia/gpus")),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def describe_versions() -> dict[str, str]:
    """Python's version and those of the installed libraries that could change a measurement."""
    found = {name: text for name in _REPORTED if (text := _version(name)) is not None}
    return {"python": platform.python_version(), **found}


def describe_commit(source: Path) -> str | None:
    """The commit of the checkout around `source`, `+changes` when tracked files differ; None outside one."""
    commit = _git(source, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(source, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if changed else commit


def describe_command() -> str:
    """The command line that is running, as one would type it; of a script its name, without its folders."""
    program = Path(sys.argv[0])
    if program.suffix != ".py" or program.parent.name == "decant":
        start = ["decant"]
    elif program.name == "__main__.py":
        start = ["python", "-m", program.parent.name]
    else:
        start = ["python", program.name]
    return shlex.join([*start, *sys.argv[1:]])


def provenance(source: Path) -> dict[str, Any]:
    """Machine, versions, commit and command, as results files hold them."""
    return {
        "hardware": describe_machine(),
        "versions": describe_versions(),
        "commit": describe_commit(source),
        "command": describe_command(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _cpu_model(cpuinfo: Path) -> str:
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_models(folder: Path) -> list[str]:
    lines = [line for file in folder.glob("*/information") for line in file.read_text().splitlines()]
    return sorted(line.partition(":")[2].strip() for line in lines if line.startswith("Model:"))
