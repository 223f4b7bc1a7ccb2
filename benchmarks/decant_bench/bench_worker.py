"""A sending process of a run with several: `python -m decant_bench.bench_worker`, spoken to in JSON lines.

It reads its job, warms up and says so, reads when to start, sends its share, and says how far it is twice a
second. Only durations and points of `time.perf_counter` pass between the processes: on Linux that is
CLOCK_MONOTONIC, one clock for the whole machine.
"""

import asyncio
import json
import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.client import ApiError
from decant.endpoint import Endpoint
from decant.wire_client import open_load_client
from decant_bench.bench_config import BenchConfig
from decant_bench.bench_share import Sender, Share, Warmup
from decant_bench.conversation_file import ConversationFile
from decant_bench.driver import Counters
from decant_bench.event_loop import run_measuring
from decant_bench.records import RecordFile
from decant_bench.workload import Conversation

_SAY_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """What a sending process is told; `records` is where it writes its requests."""

    config: BenchConfig
    endpoint: Endpoint
    share: Share
    plan: Path
    warmup: Path
    offsets_s: Sequence[float] | None
    records: Path

    def to_json(self) -> dict[str, Any]:
        """The job as JSON values, read back by `read_job`."""
        return {
            "config": self.config.model_dump(mode="json"),
            "base_url": self.endpoint.base_url,
            "model": self.endpoint.model,
            "api_key": self.endpoint.api_key,
            "number": self.share.number,
            "of": self.share.of,
            "plan": str(self.plan),
            "warmup": str(self.warmup),
            "offsets_s": None if self.offsets_s is None else list(self.offsets_s),
            "records": str(self.records),
        }


def read_job(text: str) -> Job:
    """The job that `to_json` wrote."""
    found = json.loads(text)
    return Job(
        config=BenchConfig.model_validate(found["config"]),
        endpoint=Endpoint(found["base_url"], found["model"], found["api_key"], {}, None),
        share=Share(found["number"], found["of"]),
        plan=Path(found["plan"]),
        warmup=Path(found["warmup"]),
        offsets_s=None if found["offsets_s"] is None else array("d", found["offsets_s"]),
        records=Path(found["records"]),
    )


async def work(job: Job) -> None:
    """Does the job, in step with who gave it."""
    client = open_load_client(
        job.endpoint.base_url, api_key=job.endpoint.api_key, timeout_s=job.config.endpoint.request_timeout_s
    )
    with closing(RecordFile(job.records)) as file, closing(ConversationFile.open(job.plan)) as conversations:
        async with client:
            sender = Sender(job.config, job.endpoint, client, share=job.share, on_record=file.add)
            warmup = await sender.warm_up(_all(job.warmup))
            _say({"ready": dict(warmup.outcomes), "first_failure": warmup.first_failure})
            start_s = json.loads(await asyncio.to_thread(sys.stdin.readline))["start_s"]
            telling = asyncio.create_task(_tell(sender.counters))
            record = await sender.send(conversations, job.offsets_s, start_s=start_s)
            telling.cancel()
            await asyncio.wait({telling})
    _say({"far": far(sender.counters)})
    _say({"lags_s": record.lags_s.tolist(), "cpu_share": record.cpu_share})


def far(counters: Counters) -> dict[str, Any]:
    """How far a process is, as JSON values."""
    return {
        "offered": counters.offered,
        "sent": counters.sent,
        "completed": counters.completed,
        "errors": dict(counters.errors),
    }


def warmup_of(said: dict[str, Any]) -> Warmup:
    """What a process said of its warm-up."""
    return Warmup(Counter(said["ready"]), said["first_failure"])


async def _tell(counters: Counters) -> None:
    while True:
        await asyncio.sleep(_SAY_EVERY_S)
        _say({"far": far(counters)})


def _all(path: Path) -> Sequence[Conversation]:
    stored = ConversationFile.open(path)
    conversations = list(stored)
    stored.close()
    return conversations


def _say(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Does the job on the standard input."""
    try:
        run_measuring(work(read_job(sys.stdin.readline())))
    except ApiError as error:
        _say({"failed": str(error)})
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
