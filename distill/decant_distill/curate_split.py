"""A seeded, stratified cut by group: no group stands on both sides, and both sides have the same mix."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """One row: where it is, which group it must stay with, and its class."""

    line: int
    group: str
    stratum: str


def held_out(members: Iterable[Member], *, share: float, seed: int) -> frozenset[int]:
    """The lines of about `share` of the rows, whole groups only, each class in about its proportion.

    A group counts for its most frequent class. Which groups are drawn follows from their names and the seed,
    not from their order: a row that is added moves few others.
    """
    groups: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        groups[member.group].append(member)
    strata: dict[str, list[str]] = defaultdict(list)
    for name, rows in groups.items():
        strata[_commonest(rows)].append(name)
    chosen: list[int] = []
    for stratum in sorted(strata):
        names = sorted(strata[stratum], key=lambda name: _drawn(name, seed))
        wanted = share * sum(len(groups[name]) for name in names)
        taken = 0
        for name in names:
            size = len(groups[name])
            # A group goes over when that comes nearer to the share than leaving it.
            if abs(taken + size - wanted) < abs(taken - wanted):
                chosen += [member.line for member in groups[name]]
                taken += size
    return frozenset(chosen)


def _commonest(rows: list[Member]) -> str:
    return min(Counter(row.stratum for row in rows).items(), key=lambda item: (-item[1], item[0]))[0]


def _drawn(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
