"""Straggler arithmetic and the two ledgers, on records made by hand."""

from collections.abc import Sequence
from dataclasses import asdict

import pytest

from decant_serve.shards.join import JoinedStep, Joiner, split_ranks
from decant_serve.shards.ledger import LatencyLedger, Marks, MemberStep, shard_timing
from decant_serve.shards.steps import Member, RankStep

MS = 1_000_000
ONE = (Member("chatcmpl-one-00000000", 1, is_prefill=False),)


def rank_step(
    rank: int,
    *,
    compute_ms: int,
    stays_ms: Sequence[int],
    step: int = 0,
    begin_ms: int = 0,
    members: tuple[Member, ...] = ONE,
    checksum: int = 1,
) -> RankStep:
    """One rank's record; it is in the worker from its begin to its end."""
    forward_ms = compute_ms + sum(stays_ms)
    return RankStep(
        rank=rank,
        step=step,
        checksum=checksum,
        begin_ns=begin_ms * MS,
        end_ns=(begin_ms + forward_ms) * MS,
        forward_ns=forward_ms * MS,
        compute_ns=compute_ms * MS,
        kinds=bytes(len(stays_ms)),
        durations_ns=tuple(stay * MS for stay in stays_ms),
        members=members if rank == 0 else (),
    )


def joined(*records: RankStep) -> JoinedStep:
    joiner = Joiner(len(records))
    *_, last = [joiner.add(record) for record in records]
    assert last is not None
    return last


def on_one_rank(*steps: tuple[int, int, int]) -> list[JoinedStep]:
    """Steps of (number, begin, length in ms) on an engine of one rank."""
    joiner = Joiner(1)
    records = [rank_step(0, step=step, begin_ms=at, compute_ms=ms, stays_ms=[]) for step, at, ms in steps]
    return [step for step in map(joiner.add, records) if step is not None]


def latency_of(*steps: MemberStep) -> LatencyLedger:
    """The ledger of a request that was admitted at 1 s and over at 1.1 s."""
    timing = shard_timing(steps, Marks(received_s=1.0, admitted_s=1.0, ended_s=1.1), method="clock")
    assert timing is not None
    return timing.latency


def test_the_shortest_stay_is_communication_and_the_rest_is_waiting_for_who_came_last() -> None:
    fast = rank_step(0, compute_ms=10, stays_ms=[2, 25])
    slow = rank_step(1, compute_ms=30, stays_ms=[5, 2])
    first, second = split_ranks([fast, slow])
    assert (first.compute_s, first.wait_s, first.comm_s) == pytest.approx((0.010, 0.023, 0.004))
    assert (second.compute_s, second.wait_s, second.comm_s) == pytest.approx((0.030, 0.003, 0.004))
    assert (first.held_up_s, second.held_up_s) == pytest.approx((0.003, 0.023))


def test_the_three_parts_sum_to_the_forward_on_every_rank() -> None:
    records = [rank_step(rank, compute_ms=10 * rank, stays_ms=[7 - rank, 1 + rank, 4]) for rank in range(4)]
    for rank, record in zip(split_ranks(records), records, strict=True):
        assert rank.forward_s == pytest.approx(record.forward_ns / 1e9)


def test_records_of_different_steps_are_never_joined() -> None:
    joiner = Joiner(2)
    first = rank_step(0, compute_ms=1, stays_ms=[1])
    assert joiner.add(first) is None
    assert joiner.add(rank_step(1, compute_ms=1, stays_ms=[1], checksum=2)) is None
    assert joiner.add(rank_step(0, step=1, compute_ms=1, stays_ms=[1])) is None
    assert joiner.add(rank_step(1, step=1, compute_ms=1, stays_ms=[1, 1])) is None
    assert (joiner.joined, joiner.mismatched) == (0, 2)


def test_a_step_that_lost_a_rank_is_counted_and_holds_up_no_other() -> None:
    joiner = Joiner(2)
    joiner.add(rank_step(0, step=0, compute_ms=1, stays_ms=[1]))
    joiner.add(rank_step(0, step=1, compute_ms=1, stays_ms=[1]))
    assert joiner.add(rank_step(1, step=1, compute_ms=1, stays_ms=[1])) is not None
    assert (joiner.joined, joiner.incomplete) == (1, 1)


def test_a_latency_ledger_says_where_the_time_went_between_steps_too() -> None:
    prefill, decode = on_one_rank((0, 1015, 40), (1, 1060, 10))
    steps = [MemberStep(prefill, 9, is_prefill=True), MemberStep(decode, 1, is_prefill=False)]
    marks = Marks(received_s=1.0, admitted_s=1.004, ended_s=1.1, engine_queue_s=0.003)
    timing = shard_timing(steps, marks, method="clock")
    assert timing is not None
    ledger = timing.latency
    assert (ledger.gateway_s, ledger.frontend_s, ledger.engine_queue_s) == pytest.approx(
        (0.004, 0.008, 0.003)
    )
    assert (ledger.prefill_s, ledger.decode_s, ledger.gaps_s) == pytest.approx((0.040, 0.010, 0.005))
    assert (ledger.output_s, ledger.residual_s, ledger.total_s) == pytest.approx((0.030, 0.0, 0.1))
    assert (timing.steps, timing.prefill_steps, timing.slowest.step) == (2, 1, 0)


def test_steps_of_other_requests_are_told_from_gaps() -> None:
    first, _, third = on_one_rank((0, 1010, 20), (1, 1032, 15), (2, 1050, 10))
    ledger = latency_of(MemberStep(first, 9, is_prefill=True), MemberStep(third, 1, is_prefill=False))
    assert (ledger.others_s, ledger.gaps_s, ledger.residual_s) == pytest.approx((0.015, 0.005, 0.0))


def test_time_around_a_step_that_was_not_recorded_is_unexplained() -> None:
    first, third = on_one_rank((0, 1010, 20), (2, 1050, 10))
    prefill, decode = MemberStep(first, 9, is_prefill=True), MemberStep(third, 1, is_prefill=False)
    whole, without_prefill = latency_of(prefill, decode), latency_of(decode)
    assert (whole.gaps_s, whole.residual_s) == pytest.approx((0.0, 0.020))
    assert (without_prefill.frontend_s, without_prefill.residual_s) == pytest.approx((0.0, 0.050))
    for ledger in (whole, without_prefill):
        parts = {name: seconds or 0.0 for name, seconds in asdict(ledger).items() if name != "total_s"}
        assert sum(parts.values()) == pytest.approx(ledger.total_s) == pytest.approx(0.1)


def test_the_cost_shares_of_all_requests_sum_to_the_busy_time() -> None:
    members = (Member("a", 60, True), Member("b", 1, False), Member("c", 3, False))
    ranks = [rank_step(rank, compute_ms=20 + rank, stays_ms=[3], members=members) for rank in range(2)]
    step = joined(*ranks)
    shares = [MemberStep(step, member.tokens, member.is_prefill).cost_s for member in members]
    assert sum(shares) == pytest.approx(step.busy_s) == pytest.approx(0.024)
    assert shares[0] == pytest.approx(20 * shares[2])


def test_several_answers_to_one_request_share_their_steps_in_its_latency() -> None:
    step = joined(rank_step(0, compute_ms=10, stays_ms=[], begin_ms=1000))
    marks = Marks(received_s=1.0, admitted_s=1.0, ended_s=1.01)
    timing = shard_timing([MemberStep(step, 1, False)] * 2, marks, method="clock")
    assert timing is not None
    assert timing.latency.decode_s == pytest.approx(0.010)
    assert timing.steps == 1
