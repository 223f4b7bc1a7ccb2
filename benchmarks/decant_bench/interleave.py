"""`decant bench ab`: two endpoints in one run, in turns, and which is faster.

The load is cut into blocks. In each block both endpoints get it one after the other, in an order drawn for
the block, with prompts that neither has seen. What drifts over the run, such as the machine's clock or its
neighbours, meets both alike, and the intervals draw whole blocks, the same for both.
"""

import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from decant.endpoint import Endpoint, EndpointConfig, open_endpoint
from decant.errors import DataError
from decant.files import write_json
from decant.hardware import provenance
from decant.stats import least_n
from decant_bench.bench import bench
from decant_bench.bench_config import BenchConfig
from decant_bench.bench_result import BenchFolder, read_bench
from decant_bench.compare import MEASURES, PERCENTILES, RatioRow, confidence_of, ratio_rows, ratio_table
from decant_bench.event_loop import run_measuring
from decant_bench.measures import Series, series_of
from decant_bench.self_check import InvalidRun

COMPARISON_FILE = "comparison.json"
Side = Literal["a", "b"]
_SIDES: tuple[Side, Side] = ("a", "b")


class InterleaveConfig(BenchConfig):
    """One load on two endpoints; `endpoint` is A. `requests` and `duration_s` are those of one block."""

    against: EndpointConfig = Field(description="endpoint B")
    blocks: int = Field(default=20, ge=6, description="how often each endpoint gets the load")
    margin: float = Field(default=0.0, ge=0, lt=1, description="a change within this share does not matter")

    @model_validator(mode="after")
    def _blocks_have_prompts(self) -> Self:
        if self.trace is not None or self.workload.data is not None:
            raise ValueError("blocks have prompts of their own: use synthetic ones, without trace or data")
        return self


CONFIG = InterleaveConfig


@dataclass(frozen=True, slots=True)
class Block:
    """One block: which endpoint came first, and a run of each."""

    first: Side
    runs: dict[Side, BenchFolder]


def run(config: InterleaveConfig) -> None:
    """Runs the blocks, prints the comparison and writes it; InvalidRun when a block is not valid."""
    config.output.mkdir(parents=True, exist_ok=True)
    blocks = run_measuring(_blocks(config))
    rows = compare_blocks(blocks, margin=config.margin, seed=config.seed)
    doubts = [
        f"block {number}, {side}: {doubt}"
        for number, block in enumerate(blocks)
        for side, folder in block.runs.items()
        for doubt in folder.result.doubts
    ]
    document = {
        "format_version": 1,
        "name": config.title,
        "blocks": [block.first for block in blocks],
        "rows": [row.to_json() for row in rows],
        "valid": not doubts,
        "doubts": doubts,
        **provenance(Path(__file__).parent),
        "config": config.model_dump(mode="json"),
    }
    write_json(config.output / COMPARISON_FILE, document)
    sys.stdout.write(f"{_text(config, blocks, rows)}\n  written to {config.output}\n")
    if doubts:
        raise InvalidRun(f"{config.title} is not valid: {doubts[0]} ({len(doubts)} doubts in all)")


def order_of(blocks: int, *, seed: int) -> list[Side]:
    """Which endpoint comes first in each block: either half of the time, shuffled by the seed."""
    drawn = np.random.default_rng([seed, blocks]).permutation(blocks)
    return [_SIDES[int(place) % 2] for place in drawn]


def compare_blocks(blocks: Sequence[Block], *, margin: float, seed: int) -> list[RatioRow]:
    """B / A for every percentile that all blocks together can bound, intervals paired by block.

    A block in which nothing of a measure came on one side is left out on both. DataError when no row is left.
    """
    pairs = {name: _paired(blocks, name) for name in MEASURES}
    shown = {
        name: [q for q in PERCENTILES if min(len(each.values) for each in pair) >= least_n(q)]
        for name, pair in pairs.items()
    }
    count = sum(len(qs) for qs in shown.values())
    if not count:
        raise DataError(f"nothing to compare: a median needs {least_n(50)} completed requests on both sides")
    confidence = confidence_of(count)
    return [
        row
        for name, qs in shown.items()
        if qs
        for row in ratio_rows(name, qs, pairs[name], confidence, margin=margin, seeds=(seed, seed))
    ]


def _paired(blocks: Sequence[Block], name: str) -> tuple[Series, Series]:
    found = [{side: series_of(block.runs[side].requests)[name].values for side in _SIDES} for block in blocks]
    kept = [number for number, each in enumerate(found) if all(len(each[side]) for side in _SIDES)]

    def series(side: Side) -> Series:
        values = [found[number][side] for number in kept]
        sizes = [len(each) for each in values]
        return Series(np.concatenate(values) if values else np.empty(0), np.repeat(kept, sizes))

    return series("a"), series("b")


async def _blocks(config: InterleaveConfig) -> list[Block]:
    logs = config.output.with_name(f"{config.output.name}.logs")
    async with AsyncExitStack() as stack:
        endpoints: dict[Side, Endpoint] = {}
        for side, each in zip(_SIDES, (config.endpoint, config.against), strict=True):
            endpoints[side] = await stack.enter_async_context(open_endpoint(each, log_dir=logs / side))
        blocks: list[Block] = []
        for number, first in enumerate(order_of(config.blocks, seed=config.seed)):
            runs: dict[Side, BenchFolder] = {}
            for side in sorted(_SIDES, key=lambda side: side != first):
                own = _block_config(config, number, side)
                await bench(own, endpoints[side])
                runs[side] = read_bench(own.output)
            blocks.append(Block(first, runs))
            sys.stderr.write(f"{config.title}: block {number + 1} of {config.blocks}\n")
    return blocks


def _block_config(config: InterleaveConfig, number: int, side: Side) -> BenchConfig:
    own = {name: value for name, value in dict(config).items() if name in BenchConfig.model_fields}
    name = f"block-{number:02}-{side}"
    # Prompts of its own also for the second of a block: A and B may be one server, with one cache.
    seed = config.seed + 2 * number + _SIDES.index(side)
    endpoint = config.endpoint if side == "a" else config.against
    changes = {"output": config.output / name, "name": name, "seed": seed, "endpoint": endpoint}
    # Connections and caches are warm after the first block.
    changes |= {"warmup": config.warmup if number == 0 else 0, "live": False}
    return BenchConfig.model_validate({**own, **changes})


def _text(config: InterleaveConfig, blocks: Sequence[Block], rows: Sequence[RatioRow]) -> str:
    lines = [f"{config.title}: B against A in {len(blocks)} blocks, the order drawn for each"]
    lines.append("  (ratio below 1: B is faster; intervals hold together at 95%)")
    for side in _SIDES:
        counts = [block.runs[side].result.counts for block in blocks]
        offered, failed = (sum(each[key] for each in counts) for key in ("offered", "failed"))
        lines.append(f"  {side.upper()}: {offered - failed} of {offered} requests completed")
    return "\n".join([*lines, *ratio_table("A, ms", "B, ms", rows)])
