"""A run before it starts: every conversation, when it is due, and the warm-up, all fixed by the seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from decant.errors import ConfigError
from decant_bench.bench_config import BenchConfig
from decant_bench.conversation_file import ConversationFile
from decant_bench.load import arrival_offsets_s, gamma_offsets_s, ramp_offsets_s, within
from decant_bench.tokens import TokenCounter, token_counter
from decant_bench.traces import read_trace
from decant_bench.workload import Conversation, Workload

PLAN_FILE = "plan.jsonl"


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be sent. `offsets_s` has a time for each conversation; None in a closed loop."""

    conversations: ConversationFile
    offsets_s: tuple[float, ...] | None
    warmup: Sequence[Conversation]
    counter: TokenCounter

    @property
    def requests(self) -> int:
        """How many requests the conversations make."""
        return self.conversations.turns


def make_plan(config: BenchConfig, store: Path) -> Plan:
    """Draws the schedule and writes the prompts to `store`; DataError, ConfigError where that cannot be."""
    counter = token_counter(config.workload.tokenizer)
    workload = Workload(config.workload, counter=counter, seed=config.seed)
    if config.trace is not None:
        trace = read_trace(config.trace, limit=config.requests, speed=config.trace_speed)
        offsets = within([request.offset_s for request in trace], config.duration_s)
        conversations = workload.measured(len(offsets), trace=trace)
    elif config.arrival == "closed":
        assert config.requests is not None
        offsets, conversations = None, workload.measured(config.requests)
    else:
        offsets = _offsets_s(config)
        conversations = workload.measured(len(offsets))
    stored = ConversationFile.write(store, conversations)
    if not stored:
        stored.close()
        raise ConfigError("no request is due within duration_s; make it longer or the rate higher")
    return Plan(stored, offsets, workload.warmup(config.warmup, stored), counter)


def _offsets_s(config: BenchConfig) -> tuple[float, ...]:
    assert config.rate is not None
    if config.arrival == "ramp":
        assert config.rate_end is not None
        assert config.duration_s is not None
        ramp = ramp_offsets_s(
            rate=config.rate, rate_end=config.rate_end, duration_s=config.duration_s, seed=config.seed
        )
        return ramp[: config.requests]
    n = _enough(config)
    if config.arrival == "gamma":
        offsets = gamma_offsets_s(n=n, rate=config.rate, shape=config.gamma_shape, seed=config.seed)
    else:
        arrival = "constant" if config.arrival == "constant" else "poisson"
        offsets = arrival_offsets_s(arrival, n=n, rate=config.rate, seed=config.seed)
    return within(offsets, config.duration_s)


def _enough(config: BenchConfig) -> int:
    """So many arrivals that the duration is almost surely filled."""
    if config.requests is not None:
        return config.requests
    assert config.rate is not None
    assert config.duration_s is not None
    expected = config.rate * config.duration_s
    spread = max(1.0, config.gamma_shape**-0.5)
    return math.ceil(expected + 10 * spread * math.sqrt(expected) + 10 * spread**2)
