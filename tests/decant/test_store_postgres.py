"""What is PostgreSQL's own in a request store: whose database, passwords, the clock, a server that goes."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from decant.errors import StoreError
from decant.store import Answer, NewLabel, RequestStore, store_name
from tests.postgres_server import PASSWORD, PostgresServer, programs, running


def new(key: str) -> NewLabel:
    return NewLabel(key=key, row_id="", sample=0, request={"messages": []})


def test_a_password_is_in_no_message(postgres: PostgresServer) -> None:
    url = postgres.url("nowhere")
    assert store_name(url) == f"postgresql://postgres@{postgres.folder}/nowhere"
    assert store_name("postgres://me:a%40b@host:5/x?password=c") == "postgresql://me@host:5/x"
    with pytest.raises(StoreError, match='"nowhere" does not exist; make it with createdb') as caught:
        RequestStore.open(url)
    assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_password_and_an_absent_server_say_so_in_one_line(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="check user and password") as caught:
        RequestStore.open(postgres.url("postgres", password="wr0ng"))
    assert "wr0ng" not in str(caught.value)
    with pytest.raises(StoreError, match="check the address"):
        RequestStore.open(f"postgresql://me@/x?host={tmp_path}")


def test_somebody_elses_tables_are_left_alone_and_a_schema_of_its_own_helps(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    for statement in ("CREATE TABLE labels (name text)", "CREATE SCHEMA mine"):
        postgres.run("psql", "--dbname", url, "--command", statement)
    with pytest.raises(StoreError, match="something else"):
        RequestStore.open(url)
    with RequestStore.open(f"{url}&options=-csearch_path%3Dmine") as store:
        assert store.add([new("a")]) == 1


def test_the_clock_is_the_servers(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    code = (
        "import sys, time; time.time = lambda: 5.0\n"
        "from decant.store import RequestStore, NewLabel\n"
        "store = RequestStore.open(sys.argv[1])\n"
        "store.add([NewLabel(key='a', row_id='', sample=0, request={})])\n"
        "store.lease(1, 'elsewhere', 60)\n"
    )
    subprocess.run([sys.executable, "-c", code, url], check=True)
    with RequestStore.open(url) as store:
        (label,) = store.get_many(["a"]).values()
        assert label.lease_expires is not None
        assert label.updated_at > 1e9
        assert 55 < label.lease_expires - label.updated_at < 65
        assert store.release_expired() == 0


def test_two_jobs_that_add_the_same_requests_in_opposite_orders_both_end(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    added: list[int] = []

    def add(numbers: range) -> None:
        with RequestStore.open(url) as store:
            added.append(store.add(new(str(number)) for number in numbers))

    with RequestStore.open(url):
        threads = [threading.Thread(target=add, args=(r,)) for r in (range(3000), range(2999, -1, -1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(added) == 3000


def test_a_server_that_is_stopped_is_named_and_what_was_answered_is_kept(postgres: PostgresServer) -> None:
    where = programs()
    assert where is not None
    with running(where) as server:
        url = server.new_database()
        with RequestStore.open(url) as store:
            store.add([new("a"), new("b")])
            store.finish("a", Answer(response="kept"))
            cluster = str(server.folder / "cluster")
            server.run("pg_ctl", "stop", "--pgdata", cluster, "--mode=fast")
            with pytest.raises(StoreError, match="check the address, and that the server runs"):
                store.finish("b", Answer(response="late"))
            options = f"-k {server.folder} -c listen_addresses="
            log = str(server.folder / "log")
            server.run("pg_ctl", "start", "--pgdata", cluster, "--wait", "--log", log, "--options", options)
            store.finish("b", Answer(response="later"))
            assert store.counts()["done"] == 2
