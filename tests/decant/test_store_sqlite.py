"""Request stores in SQLite files: what is no store, older versions, locks, a full disk."""

import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from decant.ask import ask_key
from decant.errors import StoreError
from decant.store import Answer, NewLabel, RequestStore


def new(key: str) -> NewLabel:
    request = {"messages": [{"role": "user", "content": f"prompt {key}"}]}
    return NewLabel(key=key, row_id=f"row {key}", sample=0, request=request)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


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


def test_a_store_of_another_version_is_refused(path: Path) -> None:
    RequestStore.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="version 99"):
        RequestStore.open(path)


def test_a_store_of_version_1_is_kept_and_can_be_looked_up(path: Path) -> None:
    with RequestStore.open(path) as store:
        store.add([new("a"), new("b")])
        store.finish("a", Answer(response="red"))
    with sqlite3.connect(path) as old:
        for statement in (
            "DROP INDEX labels_by_ask",
            "ALTER TABLE labels DROP COLUMN ask",
            "PRAGMA user_version = 1",
        ):
            old.execute(statement)
    old.close()
    with RequestStore.open(path) as store:
        assert [label.response for label in store.answers_to(ask_key(new("a").request))] == ["red"]
        assert (store.add([new("b")]), store.counts()["pending"]) == (0, 1)


def test_a_store_that_stays_locked_says_so(path: Path) -> None:
    RequestStore.open(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    with RequestStore.open(path, busy_timeout_s=0.1) as waiting:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked; another process is writing"):
            waiting.add([new("a")])
        other.execute("ROLLBACK")
        assert waiting.add([new("a")]) == 1
    other.close()


def test_a_full_disk_loses_nothing_that_was_answered(path: Path) -> None:
    code = """
        import resource, signal, sys
        from decant.errors import StoreError
        from decant.store import Answer, NewLabel, RequestStore
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = RequestStore.open(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        try:
            for i in range(1000):
                store.add([NewLabel(key=str(i), row_id="", sample=0, request={})])
                store.finish(str(i), Answer(response="x" * 5000))
                done = i
        except StoreError as error:
            print(done, error)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    done, words = told.split(" ", 1)
    assert "store.sqlite: " in words
    assert words.count("\n") == 1
    answered = {str(i) for i in range(int(done) + 1)}
    with RequestStore.open(path) as store:
        assert {key for key, label in store.get_many(answered).items() if label.status == "done"} == answered


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="give a path in a folder"):
        RequestStore.open(tmp_path / "file" / "store.sqlite")
    with pytest.raises(StoreError, match="unable to open"):
        RequestStore.open(tmp_path)


@pytest.mark.parametrize("url", ["mysql://host/labels", "://", "postgresql://me:s3cret@host:no-port/x"])
def test_other_databases_are_refused_without_repeating_a_password(url: str) -> None:
    with pytest.raises(StoreError, match="sqlite:///path or postgresql://") as caught:
        RequestStore.open(url)
    assert "s3cret" not in str(caught.value)


def test_a_url_names_a_store_as_a_path_does(path: Path) -> None:
    with RequestStore.open(path) as store, RequestStore.open(f"sqlite:///{path}") as same:
        store.add([new("a")])
        assert same.counts()["pending"] == 1
