"""What a request store promises, over both databases that it may lie in."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from decant.ask import ask_key
from decant.errors import StoreError
from decant.store import Answer, Label, NewLabel, RequestStore, process_owner
from tests.postgres_server import PostgresServer


class Clock:
    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def new(key: str, **fields: str) -> NewLabel:
    request = {"messages": [{"role": "user", "content": f"prompt {key} \ud800 é"}]}
    return NewLabel(key=key, row_id=f"row {key}", sample=0, request=request, **fields)


def keys(labels: list[Label]) -> list[str]:
    return [label.key for label in labels]


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a store: a path in a folder that is not there yet, or a database's URL."""
    if request.param == "sqlite":
        return str(tmp_path / "new folder" / "store.sqlite")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(place: str, clock: Clock) -> Iterator[RequestStore]:
    with RequestStore.open(place, clock=clock) as opened:
        yield opened


@pytest.fixture
def start(place: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a Python child that has `store` and `Answer`, and whose output can be read line by line."""
    opened = "from decant.store import *; import sys, time; store = RequestStore.open(sys.argv[1])\n"
    children: list[subprocess.Popen[str]] = []

    def begin(code: str) -> subprocess.Popen[str]:
        children.append(
            subprocess.Popen(
                [sys.executable, "-u", "-c", opened + textwrap.dedent(code), place],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return children[-1]

    yield begin
    for child in children:
        assert child.stdout is not None
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_request_is_added_once(store: RequestStore) -> None:
    assert store.add([new("a"), new("b")]) == 2
    assert store.add([new("b"), new("c"), new("c")]) == 1
    assert store.counts() == {"pending": 3, "leased": 0, "done": 0, "failed": 0, "filtered": 0}


def test_adding_again_leaves_an_answer_alone(store: RequestStore) -> None:
    store.add([new("a")])
    store.finish("a", Answer(response="red"))
    store.add([new("a")])
    assert store.get_many(["a"])["a"].response == "red"


def test_leases_go_out_in_order_and_once(store: RequestStore) -> None:
    store.add(new(key) for key in "dacb")
    assert keys(store.lease(3, "me", 60)) == ["d", "a", "c"]
    assert keys(store.lease(3, "you", 60)) == ["b"]
    assert store.lease(3, "me", 60) == []


def test_a_lease_may_be_limited_to_some_keys(store: RequestStore) -> None:
    store.add(new(key) for key in "abcd")
    assert keys(store.lease(9, "me", 60, keys=["d", "b", "unknown"])) == ["b", "d"]


def test_an_answer_and_its_request_come_back_whole(store: RequestStore, clock: Clock) -> None:
    store.add([new("a", teacher="big", prompt_version="2")])
    store.lease(1, "me", 60)
    answer = Answer(response="r", reasoning="why", answer="é", prompt_tokens=7, cost_usd=0.5, logprob=-0.1)
    clock.now_s += 5
    store.finish("a", answer)
    label = store.get_many(["a", "unknown"])["a"]
    assert label.request == new("a").request
    assert (label.status, label.attempts, label.lease_owner, label.updated_at) == (
        "done",
        1,
        None,
        clock.now_s,
    )
    assert (label.reasoning, label.answer, label.prompt_tokens, label.cost_usd) == ("why", "é", 7, 0.5)
    assert (label.row_id, label.teacher, label.prompt_version) == ("row a", "big", "2")


def test_a_passing_failure_is_pending_again_and_counts_its_attempts(store: RequestStore) -> None:
    store.add([new("a")])
    for attempt in (1, 2, 3):
        (label,) = store.lease(1, "me", 60)
        assert label.attempts == attempt
        store.fail("a", "reset", "the server dropped the connection", retryable=True)
    assert store.get_many(["a"])["a"].error_class == "reset"


def test_a_final_failure_keeps_its_reason_until_it_is_reopened(store: RequestStore) -> None:
    store.add([new("a"), new("b")])
    store.lease(2, "me", 60)
    store.fail("a", "bad_request", "too long", retryable=False)
    assert store.lease(2, "me", 60) == []
    assert (store.counts()["failed"], store.get_many(["a"])["a"].error) == (1, "too long")
    assert store.reopen(["a", "b"]) == 1
    assert store.lease(2, "me", 60)[0].attempts == 1


def test_an_answer_clears_the_error_of_an_earlier_attempt(store: RequestStore) -> None:
    store.add([new("a")])
    store.fail("a", "reset", "dropped", retryable=True)
    store.finish("a", Answer(response="red"))
    assert store.get_many(["a"])["a"].error_class is None


def test_of_two_answers_the_first_stays(store: RequestStore) -> None:
    store.add([new("a")])
    store.finish("a", Answer(response="first"))
    store.finish("a", Answer(response="second"))
    store.fail("a", "timeout", "late", retryable=True)
    assert (store.get_many(["a"])["a"].response, store.counts()["done"]) == ("first", 1)


def test_an_unknown_request_cannot_be_answered(store: RequestStore) -> None:
    with pytest.raises(StoreError, match="no request nope"):
        store.finish("nope", Answer(response="red"))


def test_a_lease_runs_out(store: RequestStore, clock: Clock) -> None:
    store.add([new("a"), new("b")])
    store.lease(1, "me", 60)
    store.lease(1, "me", 120)
    clock.now_s += 60
    assert store.release_expired() == 1
    assert keys(store.lease(9, "you", 60)) == ["a"]


def test_a_live_process_keeps_its_leases(store: RequestStore) -> None:
    store.add([new("a")])
    store.lease(1, process_owner(), 60)
    assert store.release_expired() == 0


def test_a_clock_that_goes_back_holds_no_dead_lease_and_opens_no_live_one(
    store: RequestStore, clock: Clock
) -> None:
    store.add([new("a"), new("b")])
    host = process_owner().partition(":")[0]
    live = store.lease(1, process_owner(), 60)
    dead = store.lease(1, f"{host}:{os.getpid()}:0", 60)  # a process that had this one's id before it
    clock.now_s -= 86_400
    assert (keys(live), keys(dead)) == (["a"], ["b"])
    assert keys(store.lease(2, process_owner(), 60)) == ["b"]


def test_every_row_can_be_read_in_the_order_in_which_it_came(store: RequestStore) -> None:
    store.add(new(f"{number}") for number in range(2500))
    assert [label.key for label in store.labels()] == [f"{number}" for number in range(2500)]


def test_many_threads_share_a_store(store: RequestStore) -> None:
    store.add(new(str(i)) for i in range(60))

    def work(owner: str) -> None:
        while leased := store.lease(2, owner, 60):
            for label in leased:
                store.finish(label.key, Answer(response=owner))

    threads = [threading.Thread(target=work, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    labels = store.get_many(str(i) for i in range(60))
    assert {(label.status, label.attempts) for label in labels.values()} == {("done", 1)}


def test_a_killed_process_loses_only_what_was_in_flight(
    store: RequestStore, start: Callable[..., subprocess.Popen[str]]
) -> None:
    store.add(new(key) for key in "abcd")
    child = start("""
        leased = store.lease(3, process_owner(), 3600)
        store.finish(leased[0].key, Answer(response="kept"))
        store.fail(leased[1].key, "reset", "dropped", True)
        print("ready")
        time.sleep(60)
    """)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    assert keys(store.lease(9, process_owner(), 60)) == ["b", "d"]
    child.send_signal(signal.SIGKILL)
    child.wait()
    # An hour of lease is left, but whoever holds it is gone.
    assert [(label.key, label.attempts) for label in store.lease(9, process_owner(), 60)] == [("c", 2)]
    assert store.get_many("a")["a"].response == "kept"


def test_every_answer_that_was_taken_survives_a_kill_at_any_moment(
    store: RequestStore, start: Callable[..., subprocess.Popen[str]]
) -> None:
    child = start("""
        for i in range(100000):
            store.add([NewLabel(key=str(i), row_id="", sample=0, request={})])
            store.finish(str(i), Answer(response=str(i) * 500))
            print(i)
    """)
    assert child.stdout is not None
    taken = [child.stdout.readline().strip() for _ in range(40)]
    child.kill()
    taken += child.stdout.read().split("\n")[:-1]
    labels = store.get_many(taken)
    assert [labels[key].response for key in taken] == [key * 500 for key in taken]


def test_two_processes_share_the_work_without_overlap(
    store: RequestStore, start: Callable[..., subprocess.Popen[str]]
) -> None:
    work = """
        print("ready")
        while not store.counts()["pending"]:
            time.sleep(0.001)
        while leased := store.lease(3, process_owner(), 60):
            for label in leased:
                store.finish(label.key, Answer(response="x"))
                print(label.key)
    """
    children = [start(work), start(work)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    store.add(new(str(i)) for i in range(200))
    taken = [child.communicate()[0].split() for child in children]
    assert all(taken)
    assert sorted(taken[0] + taken[1], key=int) == [str(i) for i in range(200)]


def test_processes_may_create_a_store_together(start: Callable[..., subprocess.Popen[str]]) -> None:
    children = [start("print(store.add([]))") for _ in range(4)]
    assert [child.communicate()[0] for child in children] == ["0\n"] * 4


def test_answers_that_come_together_are_committed_together_and_each_is_told_of_its_own(
    store: RequestStore,
) -> None:
    store.add(new(str(number)) for number in range(50))
    told: dict[str, str] = {}

    def settle(key: str) -> None:
        try:
            store.finish(key, Answer(response=key))
        except StoreError as error:
            told[key] = str(error)

    threads = [threading.Thread(target=settle, args=(str(number),)) for number in range(52)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.counts()["done"] == 50
    assert sorted(told) == ["50", "51"]
    assert "no request 50" in told["50"]


def test_many_answers_are_recorded_at_once(store: RequestStore) -> None:
    store.add(new(str(number)) for number in range(2000))
    store.finish_many((str(number), Answer(response=f"r{number}")) for number in range(2000))
    assert store.get_many(["1234"])["1234"].response == "r1234"
    with pytest.raises(StoreError, match="no request x"):
        store.finish_many([("x", Answer(response=""))])


def test_a_lease_that_is_renewed_does_not_run_out(store: RequestStore, clock: Clock) -> None:
    store.add([new("a"), new("b")])
    store.lease(1, "me", 60)
    store.lease(1, "you", 60)
    clock.now_s += 50
    assert store.renew("me", 60) == 1
    clock.now_s += 20
    assert keys(store.lease(9, "third", 60)) == ["b"]


def test_answers_to_the_same_question_are_found_however_they_were_drawn(
    store: RequestStore, clock: Clock
) -> None:
    messages = [{"role": "user", "content": "why?"}]
    for sample in (1, 0):
        drawn = {"model": "big", "messages": messages, "temperature": 0.7, "seed": sample, "max_tokens": 9}
        store.add([NewLabel(key=f"{sample}", row_id="", sample=sample, request=drawn)])
    store.add([new("other")])
    store.finish("1", Answer(response="one"))
    clock.now_s += 100
    store.finish("0", Answer(response="zero"))
    asked = ask_key({"model": "small", "messages": messages, "stream": True, "temperature": 0})
    assert [label.response for label in store.answers_to(asked)] == ["zero", "one"]
    assert [label.response for label in store.answers_to(asked, max_age_s=99)] == ["zero"]
    assert store.answers_to(ask_key({"messages": [{"role": "user", "content": "Why?"}]})) == []


def test_characters_that_no_database_holds_are_replaced(store: RequestStore) -> None:
    store.add([new("a")])
    store.finish("a", Answer(response="nul \0, half \ud83d, é"))
    assert store.get_many(["a"])["a"].response == "nul \ufffd, half \ufffd, é"


def test_nothing_to_add_is_nothing_added(store: RequestStore) -> None:
    assert (store.add([]), store.reopen([]), store.get_many([])) == (0, 0, {})


def test_what_an_owner_holds_can_be_listed_and_rows_forgotten(store: RequestStore) -> None:
    store.add(new(key) for key in "abcd")
    store.lease(2, "batch/1", 60)
    store.lease(1, "batch/2", 60)
    assert store.lease_owners() == ["batch/1", "batch/2"]
    assert keys(list(store.held_by("batch/1"))) == ["a", "b"]
    assert store.forget(["a", "d", "unknown"]) == 2
    assert keys(list(store.labels())) == ["b", "c"]
