"""Hugging Face checkpoints and PEFT adapters, in a child process of ours: the reference engine."""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from decant.errors import ArtifactError, ConfigError, MissingExtraError
from decant.golden import Observation
from decant_serve.calls import Features
from decant_serve.engines.local import HOST, ask, is_healthy
from decant_serve.engines.protocol import EngineDescription, EngineSettings, Launch, Pooling, Upstream

# What transformers reads a quantized folder with, by its quant_method.
_READERS: Mapping[str, tuple[str, ...]] = {
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
    "compressed-tensors": ("compressed_tensors",),
}
OBSERVE_PATH = "/decant/observe"

_SAMPLING = frozenset({"temperature", "top_p", "seed", "stop", "max_tokens", "n", "logprobs"})
FEATURES = Features(chat=_SAMPLING | {"max_completion_tokens", "top_logprobs"}, completions=_SAMPLING)

# What sentence-transformers writes beside a model, and its names for the same.
_POOLING_FILE = "1_Pooling/config.json"
_POOLING_NAMES: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
}


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What the child loads. `base` and `nf4` are for adapters; `dtype` None takes the checkpoint's own.

    `pooling` is never "model".
    """

    path: str
    base: str | None
    dtype: str | None
    nf4: bool
    name: str
    socket: str
    threads: int
    context: int
    parallel: int
    pooling: Pooling = "off"


def build(settings: EngineSettings) -> "Transformers":
    """The engine for a checkpoint or adapter folder; MissingExtraError without its libraries."""
    model = as_in_training(settings)
    _refuse_unloadable(Path(model.path))
    needed = [
        "torch",
        "transformers",
        *(["peft"] if model.base else []),
        *(["bitsandbytes"] if model.nf4 else []),
    ]
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "transformers")
    return Transformers(model)


def _refuse_unloadable(folder: Path) -> None:
    """transformers reads the formats of other libraries through those libraries only."""
    file = folder / "config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    method = str((config.get("quantization_config") or {}).get("quant_method"))
    needed = _READERS.get(method, ())
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ArtifactError(
            f"{folder}: is in the {method} format, which transformers loads with {' and '.join(needed)}"
            f" ({' and '.join(missing)} not installed); serve it with vLLM, or restore plain weights with"
            f" `decant quantize {folder} --method dequantize:F16 --output FOLDER`"
        )


def as_in_training(settings: EngineSettings) -> ModelSettings:
    """What to load and how: an adapter answers like the student only over a base loaded as in training."""
    target = settings.target
    assert target.path is not None
    trained = target.manifest if target.base else None
    return ModelSettings(
        path=str(target.path),
        base=str(target.base) if target.base else None,
        dtype=trained.recipe.get("compute_dtype") if trained else None,
        nf4=trained is not None and trained.method == "qlora",
        name=target.name,
        socket=str(settings.socket),
        threads=settings.threads,
        context=settings.context,
        parallel=settings.parallel,
        pooling=_pooling(target.path, settings.pooling),
    )


def _pooling(folder: Path, asked: Pooling) -> Pooling:
    """ "model" as the model itself says it; ConfigError where it does not."""
    if asked != "model":
        return asked
    file = folder / _POOLING_FILE
    told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found: list[Pooling] = [how for name, how in _POOLING_NAMES.items() if told.get(name)]
    if len(found) != 1:
        raise ConfigError(
            f"{folder}: says nothing of its pooling in {_POOLING_FILE}; give --pooling mean, last or cls"
        )
    return found[0]


class Transformers:
    """Batched decoding of any causal language model that transformers can load."""

    def __init__(self, model: ModelSettings) -> None:
        self.model = model

    def describe(self) -> EngineDescription:
        """What it loads, and in which numbers."""
        runtime = f"transformers {version('transformers')}, torch {version('torch')}"
        details = {"runtime": runtime, "dtype": self.model.dtype or "as saved", "nf4": self.model.nf4}
        return EngineDescription("transformers", Upstream(HOST, Path(self.model.socket)), details)

    def launch(self) -> Launch:
        """A process of its own, so that a crash in native code leaves the gateway alone."""
        threads = str(self.model.threads)
        environment = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = (sys.executable, "-m", "decant_serve.engines.hf.app", json.dumps(asdict(self.model)))
        return Launch(command, environment)

    async def probe(self, client: httpx.AsyncClient) -> Features | None:
        """It listens once the model is loaded."""
        features = replace(FEATURES, embeddings=self.model.pooling != "off")
        return features if await is_healthy(client) else None

    async def observe(
        self, client: httpx.AsyncClient, messages: Sequence[Mapping[str, str]], max_tokens: int
    ) -> Observation:
        """Asks the child, which decodes it like any other request."""
        body = {"messages": [dict(message) for message in messages], "max_tokens": max_tokens}
        return Observation.model_validate(await ask(client, OBSERVE_PATH, body))

    def prepare(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Taken as it is."""
        return body
