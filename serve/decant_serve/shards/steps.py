"""One rank's record of one engine step, and its bytes in the ring."""

import struct
import zlib
from array import array
from collections.abc import Iterable
from typing import NamedTuple

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "gather")
"""The collectives that are timed; a record names one by its place here."""

_FIXED = struct.Struct("<HQIQQQQHI")
_MEMBER = struct.Struct("<IBH")


# Named tuples: every rank makes these in every step, and a frozen dataclass takes four times as long to make.


class Member(NamedTuple):
    """A request's part in a step: how many of its tokens, and whether these belong to its prompt."""

    request_id: str
    tokens: int
    is_prefill: bool


class RankStep(NamedTuple):
    """What one rank did in one step. Nanoseconds; `begin_ns` and `end_ns` on the machine's monotonic clock.

    `forward_ns` is the time inside the worker, `compute_ns` the part of it outside of collectives, both
    measured apart. Only rank 0 names the `members`; `checksum` says of the others that they mean the same.
    """

    rank: int
    step: int
    checksum: int
    begin_ns: int
    end_ns: int
    forward_ns: int
    compute_ns: int
    kinds: bytes
    durations_ns: tuple[int, ...]
    members: tuple[Member, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether computing and collectives sum to the forward, to the nanosecond."""
        return self.compute_ns + sum(self.durations_ns) == self.forward_ns

    def to_bytes(self) -> bytes:
        """The record for the ring."""
        fixed = _FIXED.pack(
            self.rank,
            self.step,
            self.checksum,
            self.begin_ns,
            self.end_ns,
            self.forward_ns,
            self.compute_ns,
            len(self.kinds),
            len(self.members),
        )
        parts = [fixed, self.kinds, array("Q", self.durations_ns).tobytes()]
        for member in self.members:
            name = member.request_id.encode()
            parts += [_MEMBER.pack(member.tokens, member.is_prefill, len(name)), name]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, payload: bytes) -> "RankStep":
        """The record that `to_bytes` wrote; ValueError or struct.error for other bytes."""
        rank, step, checksum, begin, end, forward, compute, collectives, members = _FIXED.unpack_from(payload)
        at = _FIXED.size
        kinds = payload[at : at + collectives]
        durations = array("Q")
        durations.frombytes(payload[at + collectives : at + 9 * collectives])
        at += 9 * collectives
        named: list[Member] = []
        for _ in range(members):
            tokens, is_prefill, length = _MEMBER.unpack_from(payload, at)
            at += _MEMBER.size + length
            named.append(Member(payload[at - length : at].decode(), tokens, bool(is_prefill)))
        return cls(
            rank=rank,
            step=step,
            checksum=checksum,
            begin_ns=begin,
            end_ns=end,
            forward_ns=forward,
            compute_ns=compute,
            kinds=kinds,
            durations_ns=tuple(durations),
            members=tuple(named),
        )


def checksum_of(scheduled: Iterable[tuple[str, int]]) -> int:
    """CRC-32 of a step's sorted (request id, tokens): equal on every rank that ran the same step."""
    return zlib.crc32(repr(sorted(scheduled)).encode())


def step_payload(step: RankStep) -> bytes:
    """A step as it lies in the ring."""
    return b"S" + step.to_bytes()


def off_payload(reason: str) -> bytes:
    """What a rank writes last when its recording turns itself off."""
    return b"O" + reason.encode()


def read_payload(payload: bytes) -> RankStep | str:
    """The step, or the reason why there will be no more; ValueError or struct.error for other bytes."""
    if payload[:1] == b"S":
        return RankStep.from_bytes(payload[1:])
    if payload[:1] == b"O":
        return payload[1:].decode()
    raise ValueError(f"a record of an unknown kind: {payload[:1]!r}")
