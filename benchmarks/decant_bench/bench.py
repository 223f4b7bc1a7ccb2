"""`decant bench run`: puts a load on an endpoint, measures it, and says whether the measurement holds."""

import sys
from pathlib import Path

from decant.endpoint import Endpoint, open_endpoint
from decant.files import folder_aside, write_json, write_text
from decant_bench.bench_config import BenchConfig
from decant_bench.bench_csv import write_csvs
from decant_bench.bench_result import RESULT_FILE, BenchResult, build_result
from decant_bench.bench_run import run_load
from decant_bench.bench_text import result_text
from decant_bench.event_loop import run_measuring
from decant_bench.plan import PLAN_FILE, make_plan
from decant_bench.push import push
from decant_bench.self_check import InvalidRun

CONFIG = BenchConfig
REPORT_FILE = "report.html"


def run(config: BenchConfig) -> None:
    """Writes the result folder and prints the run; InvalidRun, with its own exit code, when it does not hold.

    EndpointError when no request completes; the folder of an earlier run stands until a new one is whole.
    """
    result = run_measuring(_run(config))
    sys.stdout.write(f"{result_text(result)}\n  written to {config.output}\n")
    if config.push_gateway is not None:
        push(result, config.push_gateway)
    require_valid(result, config.output)


def require_valid(result: BenchResult, folder: Path) -> None:
    """InvalidRun when the client was too slow for what it measured."""
    if not result.valid:
        raise InvalidRun(
            f"{result.name} is not valid: {'; '.join(result.doubts)}; run the client on an idle machine,"
            f" or with less load (the numbers are in {folder}, marked)"
        )


async def _run(config: BenchConfig) -> BenchResult:
    # Beside the output folder, which takes its place only at the end: the log must outlive a failure.
    logs = config.output.with_name(f"{config.output.name}.logs")
    async with open_endpoint(config.endpoint, log_dir=logs) as endpoint:
        return await bench(config, endpoint)


async def bench(config: BenchConfig, endpoint: Endpoint) -> BenchResult:
    """One run against an endpoint that is up, written to `config.output`."""
    from decant_bench.bench_html import bench_page

    with folder_aside(config.output) as folder:
        plan = make_plan(config, folder / PLAN_FILE)
        try:
            outcome = await run_load(config, endpoint, plan, folder=folder)
        finally:
            plan.conversations.close()
        plan.conversations.path.unlink()
        result = build_result(config, endpoint, plan, outcome)
        write_json(folder / RESULT_FILE, result.model_dump(mode="json"))
        write_csvs(folder, result)
        write_text(folder / REPORT_FILE, bench_page(result, outcome.requests))
    return result
