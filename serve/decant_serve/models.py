"""What is to be served: one model's options, and the start of its engine."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from decant.config import Config, OptionalInputPath
from decant.errors import ConfigError, EngineError
from decant.golden import GoldenReport
from decant_serve.admission import Admission
from decant_serve.engines.protocol import Engine, EngineSettings, Pooling, ShardTimingMode, build_engine
from decant_serve.gateway import ServedModel
from decant_serve.golden_check import check_golden
from decant_serve.shards.collector import ShardCollector
from decant_serve.supervisor import Supervisor
from decant_serve.target import Target, find_target

if TYPE_CHECKING:
    from decant_serve.lookup import Lookup

_engine_log = logging.getLogger("decant_serve.engine")

# The first is what `auto` takes.
_ENGINES_BY_KIND: Mapping[str, tuple[str, ...]] = {
    "hf": ("transformers", "vllm"),
    "adapter": ("transformers",),
    "gguf": ("llamacpp",),
    "script": ("scripted",),
    "remote": ("openai",),
}
_POOLING_ENGINES = ("llamacpp", "transformers")


class ModelConfig(Config):
    """One model to serve, and how its engine runs."""

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: OptionalInputPath = Field(
        default=None, description="model folder, adapter folder, .gguf file or script"
    )
    engine: Literal["auto", "llamacpp", "transformers", "vllm", "openai", "scripted"] = Field(
        default="auto", description="what runs the model; auto goes by its kind"
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="engine threads; every core but one if not set, shared by local models",
    )
    context: int = Field(default=2048, ge=64, description="tokens of context per request")
    parallel: int = Field(default=8, ge=1, description="requests that the engine decodes at once")
    queue_limit: int = Field(default=256, ge=0, description="requests that may wait before others get a 429")
    tensor_parallel_size: int = Field(default=1, ge=1, description="ranks that share the model (vllm engine)")
    engine_python: Path | None = Field(
        default=None, description="Python interpreter of the environment that has the engine (vllm engine)"
    )
    shard_timing: ShardTimingMode = Field(
        default="on",
        description="time every rank of every engine step; eager gives up CUDA graphs to split them (vllm)",
    )
    golden: Literal["check", "skip"] = Field(
        default="check", description="re-run the artifact's golden prompts first"
    )
    pooling: Pooling = Field(
        default="off",
        description="how token states become embeddings; opens /v1/embeddings (llamacpp, transformers)",
    )
    base_url: str | None = Field(default=None, description="remote endpoint, with its /v1 (openai engine)")
    api_key_env: str | None = Field(default=None, description="environment variable with the remote API key")
    model_name: str | None = Field(
        default=None, description="model id to serve under; on the openai engine the remote one"
    )
    lookup: str | Path | None = Field(
        default=None, description="request store whose labels answer the same questions: a path or URL"
    )
    lookup_ttl_s: float | None = Field(
        default=None, gt=0, description="labels older than this are not looked up"
    )
    lookup_prompt_version: str | None = Field(
        default=None, description="only labels of this prompt version are looked up"
    )
    lookup_min_share: float = Field(
        default=0.5, gt=0, le=1, description="least share of a question's samples that must agree"
    )
    lookup_accepted: OptionalInputPath = Field(
        default=None, description="only labels that this file of labels or training rows holds are looked up"
    )

    def check_source(self) -> None:
        """ValueError unless exactly one model is named, with an engine that fits."""
        if (self.model is None) == (self.base_url is None):
            raise ValueError("give either MODEL or base_url, the endpoint to pass requests on to")
        if self.base_url is not None and self.model_name is None:
            raise ValueError("base_url needs model_name, the id that the endpoint knows")
        if self.base_url is not None and self.engine not in ("auto", "openai"):
            raise ValueError(f"base_url is for the openai engine, not for {self.engine}")
        if self.base_url is None and self.engine == "openai":
            raise ValueError("the openai engine needs base_url, the endpoint to pass requests on to")
        for name in ("tensor_parallel_size", "engine_python", "shard_timing"):
            if self.engine != "vllm" and dict(self)[name] != ModelConfig.model_fields[name].default:
                raise ValueError(f"{name} is for the vllm engine; give --engine vllm with it")


class ModelTable(ModelConfig):
    """One `[[models]]` table of a config file."""

    @model_validator(mode="after")
    def _one_source(self) -> "ModelTable":
        self.check_source()
        return self


@dataclass(frozen=True, slots=True)
class Startup:
    """A model that is found, with its engine built and not yet started."""

    config: ModelConfig
    target: Target
    threads: int
    engine: Engine
    supervisor: Supervisor
    shards: ShardCollector | None
    lookup: "Lookup | None"

    async def check(self) -> GoldenReport:
        """Starts the engine and re-runs the golden prompts; EngineError when it dies."""
        await self.supervisor.start()
        manifest = None if self.config.golden == "skip" else self.target.manifest
        try:
            return await check_golden(self.engine, self.supervisor.client, manifest)
        except EngineError as error:
            raise await self.supervisor.explain(error) from None

    def served(self, report: GoldenReport) -> ServedModel:
        """The model as the gateway routes to it."""
        return ServedModel(
            name=self.target.name,
            # Asked once: an engine reads its libraries' versions for it, which takes milliseconds.
            engine_name=self.engine.describe().name,
            page=self._page(report),
            engine=self.engine,
            supervisor=self.supervisor,
            admission=Admission(slots=self.config.parallel, queue_limit=self.config.queue_limit),
            shards=self.shards,
            lookup=self.lookup,
        )

    def _page(self, report: GoldenReport) -> dict[str, Any]:
        description = self.engine.describe()
        own = {
            "engine": description.name,
            "kind": self.target.kind,
            "method": self.target.method,
            "manifest_sha256": self.target.manifest_sha256,
            "size_bytes": self.target.size_bytes,
            "golden": report.model_dump(mode="json"),
            "threads": self.threads,
            "parallel": self.config.parallel,
            "context": self.config.context,
            **description.details,
        }
        return {
            "id": self.target.name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "decant",
            "decant": own,
        }


async def find_models(
    configs: tuple[ModelConfig, ...], *, folder: Path, start_limit_s: float
) -> list[Startup]:
    """Looks at every model before any engine starts; ConfigError for two of one name."""
    targets = [await asyncio.to_thread(_find_target, config) for config in configs]
    names = [target.name for target in targets]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ConfigError(f"two models are called {double}; give one of them another model_name")
    local = sum(target.kind not in ("remote", "script") for target in targets)
    startups: list[Startup] = []
    for number, (config, target) in enumerate(zip(configs, targets, strict=True)):
        threads = config.threads or _free_threads(local)
        socket = folder / f"engine-{number}.sock"
        engine = build_engine(_engine_name(config, target), _settings(config, target, socket, threads))
        supervisor = Supervisor(engine, start_limit_s=start_limit_s, echo=_engine_log.info)
        source = engine.describe().shards
        shards = ShardCollector(source) if source else None
        lookup = await asyncio.to_thread(_lookup, config)
        startups.append(Startup(config, target, threads, engine, supervisor, shards, lookup))
    return startups


def _find_target(config: ModelConfig) -> Target:
    if config.model is not None:
        return find_target(config.model, name=config.model_name)
    assert config.model_name is not None
    return Target(config.model_name, "remote", None)


def _lookup(config: ModelConfig) -> "Lookup | None":
    if config.lookup is None:
        return None
    from decant_serve.lookup import Wanted, open_lookup, read_accepted

    wanted = Wanted(
        ttl_s=config.lookup_ttl_s,
        prompt_version=config.lookup_prompt_version,
        min_share=config.lookup_min_share,
        accepted=read_accepted(config.lookup_accepted) if config.lookup_accepted else None,
    )
    return open_lookup(config.lookup, wanted)


def _engine_name(config: ModelConfig, target: Target) -> str:
    fitting = _ENGINES_BY_KIND[target.kind]
    if config.engine not in ("auto", *fitting):
        raise ConfigError(f"the {config.engine} engine cannot serve {config.model}, a {target.kind} model")
    name = fitting[0] if config.engine == "auto" else config.engine
    if config.pooling != "off" and name not in _POOLING_ENGINES:
        engines = " and ".join(_POOLING_ENGINES)
        raise ConfigError(f"pooling is for the engines {engines}; the {name} engine does not take it")
    return name


def _settings(config: ModelConfig, target: Target, socket: Path, threads: int) -> EngineSettings:
    key = os.environ.get(config.api_key_env, "") if config.api_key_env else None
    if key == "":
        raise ConfigError(f"the environment variable {config.api_key_env} is empty; put the API key there")
    return EngineSettings(
        target=target,
        socket=socket,
        threads=threads,
        context=config.context,
        parallel=config.parallel,
        tensor_parallel_size=config.tensor_parallel_size,
        python=config.engine_python,
        shard_timing=config.shard_timing,
        remote_url=config.base_url,
        pooling=config.pooling,
        api_key=key,
    )


def _free_threads(models: int) -> int:
    """One core is left to the gateway: threads that spin at a barrier for one without a core cost tenfold."""
    return max(1, (len(os.sched_getaffinity(0)) - 1) // max(1, models))
