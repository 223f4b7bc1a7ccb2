"""Joins the ranks' records of a step, and says who computed, who waited, and what communication took.

It needs no clock that the ranks share: no rank leaves a collective before the last one has come, so the
shortest stay is what communication took, and whatever another rank stayed longer, it waited.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from decant.timing import RankTiming
from decant_serve.shards.steps import Member, RankStep

_NS = 1e-9
_PENDING_LIMIT = 4096


# A named tuple, as what it is made of: there is one for every step.
class JoinedStep(NamedTuple):
    """One engine step over all ranks; `begin_s` and `end_s` are the first rank's, on the monotonic clock.

    `busy_s` is how long it kept the engine: the longest forward of any rank; `tokens` are those of all its
    requests. `lost_before` counts the engine's steps before it that could not be joined, `worked_before_s` is
    the time of those that were.
    """

    step: int
    begin_s: float
    end_s: float
    ranks: tuple[RankTiming, ...]
    members: tuple[Member, ...]
    busy_s: float
    tokens: int
    lost_before: int = 0
    worked_before_s: float = 0.0

    @property
    def worked_s(self) -> float:
        """From its begin to its end on the first rank."""
        return self.end_s - self.begin_s


def split_ranks(records: Sequence[RankStep]) -> tuple[RankTiming, ...]:
    """Compute, wait and communication of each rank, and how long it held the others up.

    For each collective, communication is the shortest stay of any rank. Who stayed shortest came last, and
    is held to account for the longest wait that it caused.
    """
    stays_ns = [record.durations_ns for record in records]
    held_up_ns = [0] * len(records)
    columns = list(zip(*stays_ns, strict=True))
    shortest_ns = list(map(min, columns))
    comm_ns = sum(shortest_ns)
    for stays, shortest, longest in zip(columns, shortest_ns, map(max, columns), strict=True):
        held_up_ns[stays.index(shortest)] += longest - shortest
    return tuple(
        RankTiming(
            rank=record.rank,
            compute_s=record.compute_ns * _NS,
            wait_s=(sum(stays) - comm_ns) * _NS,
            comm_s=comm_ns * _NS,
            held_up_s=held_up * _NS,
        )
        for record, stays, held_up in zip(records, stays_ns, held_up_ns, strict=True)
    )


class Joiner:
    """Collects records until a step has all its ranks. What does not fit is counted, never joined."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._pending: OrderedDict[int, dict[int, RankStep]] = OrderedDict()
        self.joined = 0
        self.mismatched = 0
        self.incomplete = 0
        self.broken_sums = 0
        self._next_step = 0
        self._lost = 0
        self._worked_s = 0.0

    def add(self, record: RankStep) -> JoinedStep | None:
        """The step, where this record was the last that it lacked."""
        self.broken_sums += not record.is_whole
        waiting = self._pending.setdefault(record.step, {})
        waiting[record.rank] = record
        if len(waiting) < self._ranks:
            if len(self._pending) > _PENDING_LIMIT:
                self._pending.popitem(last=False)
                self.incomplete += 1
            return None
        del self._pending[record.step]
        # Ranks run the steps in one order, so what is older and still lacks a rank was dropped by its ring.
        for stale in [step for step in self._pending if step < record.step]:
            del self._pending[stale]
            self.incomplete += 1
        return self._join([waiting[rank] for rank in sorted(waiting)])

    def forget_pending(self) -> None:
        """The engine was restarted and counts its steps from 0 again."""
        self.incomplete += len(self._pending)
        self._pending.clear()
        self._next_step = 0

    def _join(self, records: Sequence[RankStep]) -> JoinedStep | None:
        first = records[0]
        if any((record.checksum, record.kinds) != (first.checksum, first.kinds) for record in records):
            self.mismatched += 1
            return None
        self.joined += 1
        self._lost += first.step - self._next_step
        self._next_step = first.step + 1
        step = JoinedStep(
            step=first.step,
            begin_s=first.begin_ns * _NS,
            end_s=first.end_ns * _NS,
            ranks=split_ranks(records),
            members=first.members,
            busy_s=max(record.forward_ns for record in records) * _NS,
            tokens=sum(member.tokens for member in first.members),
            lost_before=self._lost,
            worked_before_s=self._worked_s,
        )
        self._worked_s += step.worked_s
        return step
