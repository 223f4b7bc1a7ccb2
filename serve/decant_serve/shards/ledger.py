"""One request's two ledgers over its engine steps: where its time went, and what it cost. Never mixed.

The latency ledger is inclusive: a step counts whole for every request in it. The cost ledger divides a step's
time among its requests by tokens, so that the shares of all requests sum to the engine's busy time.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from decant.timing import RankTiming
from decant_serve.shards.join import JoinedStep


# A named tuple, as the step in it: there is one for every request in every step.
class MemberStep(NamedTuple):
    """A step that a request took part in."""

    step: JoinedStep
    tokens: int
    is_prefill: bool

    @property
    def cost_s(self) -> float:
        """This request's share of the engine's time."""
        return self.step.busy_s * self.tokens / self.step.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """The gateway's clock readings of one request, in seconds on the machine's monotonic clock.

    `engine_queue_s` is the wait that the engine itself reports, if it does.
    """

    received_s: float
    admitted_s: float
    ended_s: float
    engine_queue_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyLedger:
    """Seconds from arrival to the last byte. All but `total_s` sum to it.

    `gateway_s`: read, checked, queued. `frontend_s`: from there to the first step, without `engine_queue_s`,
    the engine's own queue (None where it does not say). `prefill_s`, `decode_s`: the first rank's forwards.
    `others_s`: steps between them for other requests alone. `gaps_s`: between steps (the scheduler,
    sampling). `output_s`: from the last step to the last byte. `residual_s` is unexplained: time beside
    engine steps that are not on record.
    """

    gateway_s: float
    frontend_s: float
    engine_queue_s: float | None
    prefill_s: float
    decode_s: float
    others_s: float
    gaps_s: float
    output_s: float
    residual_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTiming:
    """What the ranks did for one request. `cost_s` is its share of the engine's busy time.

    `ranks` sums over all its steps, `prefill` and `decode` over those of each phase. `slowest` is the step
    with the longest forward.
    """

    method: str
    steps: int
    prefill_steps: int
    ranks: tuple[RankTiming, ...]
    prefill: tuple[RankTiming, ...]
    decode: tuple[RankTiming, ...]
    slowest: JoinedStep
    latency: LatencyLedger
    cost_s: float

    def to_dict(self) -> dict[str, Any]:
        """All but `ranks` as JSON values."""
        return {
            "method": self.method,
            "steps": self.steps,
            "prefill_steps": self.prefill_steps,
            "latency": asdict(self.latency),
            "cost_s": self.cost_s,
            "prefill": rank_rows(self.prefill),
            "decode": rank_rows(self.decode),
            "slowest_step": {
                "step": self.slowest.step,
                "requests": len(self.slowest.members),
                "tokens": self.slowest.tokens,
                "ranks": rank_rows(self.slowest.ranks),
            },
        }


def rank_rows(ranks: Sequence[RankTiming]) -> list[dict[str, Any]]:
    """Ranks as JSON values."""
    return [asdict(rank) for rank in ranks]


def shard_timing(steps: Sequence[MemberStep], marks: Marks, *, method: str) -> ShardTiming | None:
    """The ledgers of one request; None where no step of it was recorded."""
    if not steps:
        return None
    steps = _by_step(steps)
    prefill = _sum_ranks([member.step.ranks for member in steps if member.is_prefill])
    decode = _sum_ranks([member.step.ranks for member in steps if not member.is_prefill])
    return ShardTiming(
        method=method,
        steps=len(steps),
        prefill_steps=sum(member.is_prefill for member in steps),
        ranks=_sum_ranks([phase for phase in (prefill, decode) if phase]),
        prefill=prefill,
        decode=decode,
        slowest=max((member.step for member in steps), key=lambda step: step.busy_s),
        latency=_latency(steps, marks),
        cost_s=sum(member.cost_s for member in steps),
    )


def _by_step(steps: Sequence[MemberStep]) -> list[MemberStep]:
    """Each step once and in order: the answers of n > 1 are several members of one step."""
    merged: dict[int, MemberStep] = {}
    for member in steps:
        other = merged.get(member.step.step)
        merged[member.step.step] = member if other is None else _together(member, other)
    return [merged[number] for number in sorted(merged)]


def _together(one: MemberStep, other: MemberStep) -> MemberStep:
    return MemberStep(one.step, one.tokens + other.tokens, one.is_prefill or other.is_prefill)


def _sum_ranks(rows: Sequence[tuple[RankTiming, ...]]) -> tuple[RankTiming, ...]:
    """Rank by rank; () of nothing."""
    columns = zip(*rows, strict=True)
    return tuple(
        RankTiming(
            rank=column[0].rank,
            compute_s=sum(rank.compute_s for rank in column),
            wait_s=sum(rank.wait_s for rank in column),
            comm_s=sum(rank.comm_s for rank in column),
            held_up_s=sum(rank.held_up_s for rank in column),
        )
        for column in columns
    )


def _latency(steps: Sequence[MemberStep], marks: Marks) -> LatencyLedger:
    forwards_s = [(member.step.ranks[0].forward_s, member.is_prefill) for member in steps]
    prefill_s = sum(seconds for seconds, is_prefill in forwards_s if is_prefill)
    decode_s = sum(seconds for seconds, is_prefill in forwards_s if not is_prefill)
    gateway_s = marks.admitted_s - marks.received_s
    before_s = steps[0].step.begin_s - marks.admitted_s
    # Without its prefill on record, nobody knows what the time before the first step was.
    knows_begin = steps[0].is_prefill
    engine_queue_s = marks.engine_queue_s if knows_begin else None
    between = [_between(a.step, b.step) for a, b in pairwise(steps)]
    idle_s = {True: 0.0, False: 0.0}
    for _, left_s, is_known in between:
        idle_s[is_known] += left_s
    return LatencyLedger(
        gateway_s=gateway_s,
        frontend_s=before_s - (engine_queue_s or 0.0) if knows_begin else 0.0,
        engine_queue_s=engine_queue_s,
        prefill_s=prefill_s,
        decode_s=decode_s,
        others_s=sum(others_s for others_s, _, _ in between),
        gaps_s=sum(member.step.worked_s for member in steps) - prefill_s - decode_s + idle_s[True],
        output_s=marks.ended_s - steps[-1].step.end_s,
        residual_s=idle_s[False] + (0.0 if knows_begin else before_s),
        total_s=marks.ended_s - marks.received_s,
    )


def _between(earlier: JoinedStep, later: JoinedStep) -> tuple[float, float, bool]:
    """From one step to a later one: time in steps of others, what is left, and whether all are on record."""
    others_s = later.worked_before_s - earlier.worked_before_s - earlier.worked_s
    left_s = later.begin_s - earlier.end_s - others_s
    return others_s, left_s, later.lost_before == earlier.lost_before
