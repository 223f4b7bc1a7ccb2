import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from decant.errors import StoreError
from decant.store import Answer, Label, NewLabel, RequestStore, process_owner


class Clock:
    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def new(key: str, **fields: str) -> NewLabel:
    request = {"messages": [{"role": "user", "content": f"prompt {key} \ud800 é"}]}
    return NewLabel(key=key, row_id=f"row {key}", sample=0, request=request, **fields)


def keys(labels: list[Label]) -> list[str]:
    return [label.key for label in labels]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "store.sqlite"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[RequestStore]:
    with RequestStore.open(path, clock=clock) as opened:
        yield opened


@pytest.fixture
def start(path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a Python child that has `store` and `Answer`, and whose output can be read line by line."""
    opened = "from decant.store import *; import sys, time; store = RequestStore.open(sys.argv[1])\n"
    children: list[subprocess.Popen[str]] = []

    def begin(code: str) -> subprocess.Popen[str]:
        children.append(
            subprocess.Popen(
                [sys.executable, "-u", "-c", opened + textwrap.dedent(code), str(path)],
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


def test_processes_may_create_a_store_together(
    path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    path.parent.mkdir()
    children = [start("print(store.add([]))") for _ in range(4)]
    assert [child.communicate()[0] for child in children] == ["0\n"] * 4


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    wrong = tmp_path / "labels.jsonl"
    wrong.write_text('{"id": 1}\n' * 100)
    with pytest.raises(StoreError, match=r"labels\.jsonl: file is not a database; give another path"):
        RequestStore.open(wrong)
    assert wrong.read_text() == '{"id": 1}\n' * 100


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE labels (name)")
    connection.close()
    with pytest.raises(StoreError, match="no request store"):
        RequestStore.open(other)


def test_a_store_of_another_version_is_refused(store: RequestStore, path: Path) -> None:
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="version 99"):
        RequestStore.open(path)


def test_a_store_that_stays_locked_says_so(store: RequestStore, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    with RequestStore.open(path, busy_timeout_s=0.1) as waiting:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked; another process is writing"):
            waiting.add([new("a")])
        other.execute("ROLLBACK")
        assert waiting.add([new("a")]) == 1
    other.close()


def test_a_full_disk_loses_nothing_that_was_answered(
    store: RequestStore, start: Callable[..., subprocess.Popen[str]]
) -> None:
    child = start("""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        from decant.errors import StoreError
        try:
            for i in range(1000):
                store.add([NewLabel(key=str(i), row_id="", sample=0, request={})])
                store.finish(str(i), Answer(response="x" * 5000))
                done = i
        except StoreError as error:
            print(done, error)
    """)
    done, words = child.communicate()[0].split(" ", 1)
    assert "store.sqlite: " in words
    assert words.count("\n") == 1
    assert set(store.get_many(str(i) for i in range(int(done) + 1))) == {str(i) for i in range(int(done) + 1)}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="give a path in a folder"):
        RequestStore.open(tmp_path / "file" / "store.sqlite")
    with pytest.raises(StoreError, match="unable to open"):
        RequestStore.open(tmp_path)


@pytest.mark.parametrize("url", ["postgresql://host/labels", "://"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match="sqlite:///path"):
        RequestStore.open(url)


def test_a_url_names_a_store_as_a_path_does(store: RequestStore, path: Path) -> None:
    store.add([new("a")])
    with RequestStore.open(f"sqlite:///{path}") as same:
        assert same.counts()["pending"] == 1
