"""The interpreter that vLLM lives in, and how it is laid over the cores of a machine without a GPU."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.errors import ConfigError
from decant_serve.engines.protocol import EngineSettings

_ASK_LIMIT_S = 60.0
_GIB = 2**30
# Reads metadata only: importing vLLM takes ten seconds.
_ASK = """
import importlib.metadata as m, json
found = {d.metadata["Name"].lower(): d.version for d in m.distributions() if d.metadata["Name"]}
name = next((n for n in ("vllm", "vllm-cpu") if n in found), None)
print(json.dumps({"version": found.get(name), "cpu": name == "vllm-cpu" or "+cpu" in found.get(name, "")}))
"""


@dataclass(frozen=True, slots=True)
class VllmRuntime:
    """An interpreter with vLLM; `version` without its local part."""

    python: Path
    version: str
    on_cpu: bool


def find_runtime(python: Path) -> VllmRuntime:
    """Asks the interpreter which vLLM it has; ConfigError where it has none or cannot be run."""
    try:
        done = subprocess.run(
            [str(python), "-c", _ASK], capture_output=True, text=True, timeout=_ASK_LIMIT_S, check=True
        )
        told: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise ConfigError(
            f"{python}: no Python interpreter that answers ({reason}); see --engine-python"
        ) from None
    if told["version"] is None:
        raise ConfigError(
            f"{python}: has no vLLM; make an environment with it (`pip install vllm` on a GPU machine,"
            " deploy/vllm-cpu/install.sh on any other) and give its interpreter as --engine-python"
        )
    return VllmRuntime(python, str(told["version"]).partition("+")[0], told["cpu"])


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """How a model runs on cores: its numbers, and what the environment says."""

    dtype: str
    environment: Mapping[str, str]


def cpu_plan(settings: EngineSettings, cores: Sequence[int]) -> CpuPlan:
    """Cores divided among the ranks, and memory for as many tokens as may be in flight.

    Computed in float32: bfloat16 ends in SIGILL where a virtual machine advertises AMX and does not grant
    it. GPTQ's kernels want float16. ConfigError for more ranks than cores.
    """
    size = settings.tensor_parallel_size
    if size > len(cores):
        raise ConfigError(
            f"tensor_parallel_size {size}: there are {len(cores)} cores, and each rank needs one"
        )
    assert settings.target.path is not None
    config: dict[str, Any] = json.loads((settings.target.path / "config.json").read_text(encoding="utf-8"))
    per_rank = max(1, settings.threads // size)
    environment = {"VLLM_CPU_KVCACHE_SPACE": str(_cache_gib(config, settings.context * settings.parallel))}
    if size > 1:
        shares = [cores[rank * per_rank : (rank + 1) * per_rank] for rank in range(size)]
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, share)) for share in shares)
    else:
        # Bound to cores, two models on one machine would share the first ones.
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(per_rank)}
    given = {
        name: os.environ[name] for name in environment if name.startswith("VLLM_") and name in os.environ
    }
    return CpuPlan("float16" if config.get("quantization_config") else "float32", {**environment, **given})


def _cache_gib(config: Mapping[str, Any], tokens: int) -> int:
    """Whole GiB for keys and values of that many tokens in float32, with a margin for blocks begun."""
    heads = int(config.get("num_attention_heads") or 1)
    width = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    layers = int(config.get("num_hidden_layers") or 1)
    needed = 2 * 4 * layers * kv_heads * width * (tokens + 128 * 64)
    return max(1, -(-needed // _GIB))
