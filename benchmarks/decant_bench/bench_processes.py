"""A load sent by several processes: warmed up and let go together, their records put into one file."""

import asyncio
import json
import sys
import time
from array import array
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from decant.endpoint import Endpoint
from decant.errors import DecantError
from decant.processes import end_with_parent
from decant_bench.bench_config import BenchConfig
from decant_bench.bench_share import ProcessRecord, Share, Warmup
from decant_bench.bench_worker import Job, warmup_of
from decant_bench.conversation_file import ConversationFile
from decant_bench.driver import Counters
from decant_bench.pacing import HEAD_START_S
from decant_bench.plan import Plan
from decant_bench.records import REQUESTS_FILE

# A line holds at most a process's samples of its event loop: fifty a second.
_LONGEST_LINE = 64 * 2**20


class SendingProcesses:
    """Processes that hold their shares of a plan and wait for the start."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process], warmup: Warmup) -> None:
        self.warmup = warmup
        self.counters = Counters()
        self._processes = processes
        self._far: dict[int, dict[str, Any]] = {}

    async def send(self) -> tuple[float, ProcessRecord]:
        """Starts them all at one point in time, which is returned with their records in one."""
        # Each has a line to read yet.
        start_s = time.perf_counter() + 5 * HEAD_START_S
        for process in self._processes:
            _write(process, {"start_s": start_s})
        records = await asyncio.gather(*(self._follow(n, p) for n, p in enumerate(self._processes)))
        lags_s = array("d")
        for record in records:
            lags_s.extend(record.lags_s)
        # The busiest process is the one that would be late.
        return start_s, ProcessRecord(lags_s, max(record.cpu_share for record in records))

    async def _follow(self, number: int, process: asyncio.subprocess.Process) -> ProcessRecord:
        while True:
            said = await _read(process)
            if "lags_s" in said:
                await process.wait()
                return ProcessRecord(array("d", said["lags_s"]), said["cpu_share"])
            self._far[number] = said["far"]
            self._add_up()

    def _add_up(self) -> None:
        # Whoever shows the counters holds this object: it is changed, not replaced.
        counters, all_far = self.counters, self._far.values()
        counters.offered = sum(far["offered"] for far in all_far)
        counters.sent = sum(far["sent"] for far in all_far)
        counters.completed = sum(far["completed"] for far in all_far)
        counters.errors = sum((Counter[str](far["errors"]) for far in all_far), Counter[str]())


@asynccontextmanager
async def sending_processes(
    config: BenchConfig, endpoint: Endpoint, plan: Plan, *, folder: Path
) -> AsyncGenerator[SendingProcesses]:
    """Processes that are warmed up; their records are in requests.jsonl in the folder afterwards."""
    warmup_file = folder / "warmup.jsonl"
    ConversationFile.write(warmup_file, plan.warmup).close()

    def job(number: int) -> Job:
        return Job(
            config=config,
            endpoint=endpoint,
            share=Share(number, config.processes),
            plan=plan.conversations.path,
            warmup=warmup_file,
            offsets_s=plan.offsets_s,
            records=folder / f"requests-{number}.jsonl",
        )

    async with AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(_process(job(number))) for number in range(config.processes)
        ]
        ready = [warmup_of(said) for said in await asyncio.gather(*(_read(each) for each in processes))]
        outcomes = sum((warmup.outcomes for warmup in ready), Counter[str]())
        first = next((warmup.first_failure for warmup in ready if warmup.first_failure), None)
        yield SendingProcesses(processes, Warmup(outcomes, first))
    warmup_file.unlink()
    _join(folder, [job(number).records for number in range(config.processes)])


@asynccontextmanager
async def _process(job: Job) -> AsyncGenerator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "decant_bench.bench_worker"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LONGEST_LINE,
        preexec_fn=end_with_parent(),
    )
    try:
        _write(process, job.to_json())
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _write(process: asyncio.subprocess.Process, values: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(values).encode() + b"\n")


async def _read(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        code = await process.wait()
        raise DecantError(f"a sending process ended with exit code {code}; what it printed stands above")
    said = json.loads(line)
    if "failed" in said:
        raise DecantError(f"a sending process failed: {said['failed']}")
    return said


def _join(folder: Path, parts: Sequence[Path]) -> None:
    with (folder / REQUESTS_FILE).open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(2**20):
                    whole.write(block)
            part.unlink()
