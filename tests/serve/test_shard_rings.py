"""The ring between a rank and the gateway, and the records in it."""

from pathlib import Path

import pytest

from decant_serve.shards.ring import RingReader, RingWriter
from decant_serve.shards.steps import Member, RankStep, checksum_of, read_payload, step_payload

STEP = RankStep(
    rank=1,
    step=7,
    checksum=checksum_of([("b", 1), ("a", 3)]),
    begin_ns=2**60,
    end_ns=2**60 + 900,
    forward_ns=800,
    compute_ns=500,
    kinds=bytes([0, 1]),
    durations_ns=(100, 200),
    members=(Member("chatcmpl-größe-0a1b2c3d", 3, is_prefill=True), Member("cmpl-b-0-0a1b2c3d", 1, False)),
)


@pytest.fixture
def ring(tmp_path: Path) -> tuple[RingWriter, RingReader]:
    """A small ring with both its ends."""
    path = tmp_path / "rank-0.ring"
    writer = RingWriter(path, note={"rank": 0}, size_bytes=256)
    return writer, RingReader(path)


def test_a_step_survives_its_way_through_the_ring(ring: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ring
    writer.write(step_payload(STEP))
    assert [read_payload(payload) for payload in reader.read()] == [STEP]
    assert reader.note == {"rank": 0}


def test_records_wrap_around_the_end_and_stay_in_order(ring: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ring
    sent = [bytes([number]) * (number % 90) for number in range(250)]
    received: list[bytes] = []
    for payload in sent:
        assert writer.write(payload)
        received += reader.read()
    assert received == sent


def test_what_finds_no_room_is_dropped_and_counted(ring: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ring
    taken = [writer.write(bytes(60)) for _ in range(6)]
    assert taken == [True, True, True, False, False, False]
    assert (len(reader.read()), reader.dropped) == (3, 3)
    assert writer.write(bytes(60))
    assert len(reader.read()) == 1


def test_a_torn_record_is_given_up_after_a_while_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.ring"
    writer, reader = RingWriter(path, note={}, size_bytes=256), RingReader(path)
    writer.write(b"whole")
    with path.open("rb+") as file:
        file.seek(4096 + 8)
        file.write(b"W")
    assert [reader.read() for _ in range(3)] == [[], [], []]
    assert reader.torn == 1
    writer.write(b"next")
    assert reader.read() == [b"next"]


def test_a_file_that_is_no_ring_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.ring"
    path.write_bytes(bytes(8192))
    with pytest.raises(ValueError, match="not a ring"):
        RingReader(path)


def test_the_checksum_tells_steps_apart_and_ignores_their_order() -> None:
    assert checksum_of([("a", 1), ("b", 2)]) == checksum_of([("b", 2), ("a", 1)])
    assert checksum_of([("a", 1), ("b", 2)]) != checksum_of([("a", 2), ("b", 1)])
