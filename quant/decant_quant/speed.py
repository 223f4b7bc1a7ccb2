"""How fast an artifact is in its engine: load time, prompt tokens and answer tokens a second, one stream.

`decant serve` runs it in a child process and is asked over HTTP, as a product would ask it. Prompts are
random token ids, new ones each time, so that no cache of earlier prompts helps.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.artifact import TOKENIZER_FILE, has_manifest, read_manifest
from decant.client import OpenAIClient
from decant.endpoint import EndpointConfig, open_endpoint
from decant.errors import QuantizeError
from decant.hardware import describe_machine
from decant.timing import RequestTiming, percentile
from decant_quant.checkpoint import read_json
from decant_quant.options import SpeedConfig


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of `n` requests, and where the middle 80 % of them lie."""

    median: float
    low: float
    high: float
    n: int

    def words(self) -> str:
        """The numbers in a few words."""
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g}, n {self.n})"


@dataclass(frozen=True, slots=True)
class Speed:
    """What was timed. `load_s`: from the start of `decant serve` until it answers, golden prompts included.

    `prefill_tokens_per_s`: prompt tokens over the time to the first token. `decode_tokens_per_s`: of the
    further tokens.
    """

    engine: str
    load_s: float
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread
    prompt_tokens: int
    hardware: Mapping[str, Any]

    def sentence(self) -> str:
        """The numbers in one line."""
        return (
            f"in {self.engine}: loads in {self.load_s:.1f} s, prefill {self.prefill_tokens_per_s.words()} and"
            f" decode {self.decode_tokens_per_s.words()} tokens/s, one stream"
        )


def measure_speed(
    folder: Path, config: SpeedConfig, *, threads: int | None = None, engine_python: Path | None = None
) -> Speed:
    """Serves the artifact and times it; QuantizeError when too few answers came in pieces."""
    endpoint = EndpointConfig(
        serve=folder,
        engine=config.engine,
        engine_python=engine_python,
        threads=config.threads or threads,
        parallel=1,
        context=max(64, config.prompt_tokens + config.output_tokens + 16),
    )
    load_s, engine, timings = asyncio.run(_timed(folder, config, endpoint))
    decoded = [1.0 / timing.tpot_s for timing in timings if timing.tpot_s]
    prefilled = [_prompt_rate(timing, config) for timing in timings if timing.ttft_s]
    if len(decoded) < 2 or len(prefilled) < 2:
        raise QuantizeError(
            f"{folder}: {len(decoded)} of {len(timings)} answers came in more than one piece, and a speed"
            f" needs two; raise timing.output_tokens, or leave --speed out"
        )
    return Speed(
        engine=engine,
        load_s=load_s,
        prefill_tokens_per_s=_spread(prefilled),
        decode_tokens_per_s=_spread(decoded),
        prompt_tokens=config.prompt_tokens,
        hardware=describe_machine(),
    )


async def _timed(
    folder: Path, config: SpeedConfig, endpoint: EndpointConfig
) -> tuple[float, str, list[RequestTiming]]:
    rng = random.Random(0)
    vocabulary = _vocabulary(folder)
    bias = _end_bias(folder)
    timings: list[RequestTiming] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as logs:
        async with open_endpoint(endpoint, log_dir=Path(logs)) as served:
            load_s = time.perf_counter() - started
            async with OpenAIClient(served.base_url, timeout_s=config.timeout_s) as client:
                # The first request warms up: caches, kernels that are compiled on first use.
                for _ in range(config.requests + 1):
                    ids = [rng.randrange(vocabulary // 2, vocabulary) for _ in range(config.prompt_tokens)]
                    request = {"model": served.model, "prompt": ids, "max_tokens": config.output_tokens}
                    done = await client.complete({**request, "temperature": 0.0, **bias})
                    timings.append(done.timing)
            return load_s, str(served.description.get("engine", config.engine)), timings[1:]


def _prompt_rate(timing: RequestTiming, config: SpeedConfig) -> float:
    assert timing.ttft_s is not None
    read = (timing.prompt_tokens or config.prompt_tokens) - (timing.cached_tokens or 0)
    return read / timing.ttft_s


def _spread(values: Sequence[float]) -> Spread:
    low, median, high = (percentile(list(values), q) for q in (10, 50, 90))
    return Spread(median, low, high, len(values))


def _vocabulary(folder: Path) -> int:
    return len(read_json(folder / TOKENIZER_FILE)["model"]["vocab"])


def _end_bias(folder: Path) -> dict[str, Any]:
    """Keeps the answer from ending early, where the end token is known."""
    golden = read_manifest(folder).golden if has_manifest(folder) else None
    return {} if golden is None else {"logit_bias": {str(golden.eos_id): -100}}
