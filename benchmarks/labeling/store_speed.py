"""How fast a request store takes labels: `python -m labeling.store_speed` prints a Markdown table.

How fast the gateway answers from one: `python -m gateway lookup`.
"""

import argparse
import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from decant.store import Answer, NewLabel, RequestStore
from decant.wire import request_key
from decant_distill.label_record import Recorder

_ROWS_PER_CALL = 500
_THREADS = 8
_WAITING = 64
_ANSWER = Answer(
    response="It is even because it ends in 4.\nAnswer: even", reasoning="It is even because it ends in 4.",
    answer="even", finish_reason="stop", prompt_tokens=20, completion_tokens=14, cost_usd=1e-5, latency_s=0.2,
)  # fmt: skip


def request(number: int) -> dict[str, object]:
    """The number's request."""
    content = f"Is {number} even or odd? Explain in one sentence, then write `Answer:` and the word."
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 64, "seed": number}


def new_label(number: int) -> NewLabel:
    """The number's row."""
    asked = request(number)
    key = request_key(model="big", revision=None, request=asked)
    return NewLabel(key=key, row_id=f"r{number}", sample=0, request=asked, teacher="big")


def writes(place: str, rows: int, repeats: int) -> None:
    """Rows per second of each way to write, in a store that grows."""
    ways: dict[str, Callable[[RequestStore, list[str]], None]] = {
        "one call per label, one thread": one_by_one,
        f"one call per label, {_THREADS} threads": by_threads,
        f"{_ROWS_PER_CALL} labels per call": many,
        f"as `decant label` writes, {_WAITING} rows waiting": by_recorder,
    }
    print("| writes | labels | labels per second, lowest to highest |")
    print("|---|---|---|")
    with RequestStore.open(place) as store:
        first = sum(store.counts().values())
        adding: list[float] = []
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, write in ways.items():
                labels = [new_label(number) for number in range(first, first + rows)]
                first += rows
                adding.append(rows / timed(add, store, labels))
                rates[name].append(rows / timed(write, store, [label.key for label in labels]))
    for name, found in {f"requests added, {_ROWS_PER_CALL} per call": adding, **rates}.items():
        print(f"| {name} | {rows:,} x {len(found)} | {min(found):,.0f} to {max(found):,.0f} |")


def add(store: RequestStore, labels: list[NewLabel]) -> None:
    """Registers requests, some hundred in each transaction."""
    for start in range(0, len(labels), _ROWS_PER_CALL):
        store.add(labels[start : start + _ROWS_PER_CALL])


def one_by_one(store: RequestStore, keys: list[str]) -> None:
    """Each label committed before the next one."""
    for key in keys:
        store.finish(key, _ANSWER)


def by_threads(store: RequestStore, keys: list[str]) -> None:
    """The same from several threads, whose commits are grouped."""
    threads = [
        threading.Thread(target=one_by_one, args=(store, keys[place::_THREADS])) for place in range(_THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def many(store: RequestStore, keys: list[str]) -> None:
    """Some hundred labels in each transaction."""
    for start in range(0, len(keys), _ROWS_PER_CALL):
        store.finish_many((key, _ANSWER) for key in keys[start : start + _ROWS_PER_CALL])


def by_recorder(store: RequestStore, keys: list[str]) -> None:
    """As a labeling job does: each label is counted when its group is committed, then the next one comes."""
    recorder, left = Recorder(store), iter(keys)

    async def row_after_row() -> None:
        for key in left:
            await recorder.record(key, _ANSWER)

    async def all_rows() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_WAITING):
                tasks.create_task(row_after_row())

    asyncio.run(all_rows())


def timed(work: Callable[..., object], *arguments: object) -> float:
    """The seconds that a call takes."""
    started_s = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started_s


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures on a new store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/store-bench"))
    parser.add_argument("--rows", type=int, default=4_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", help="an empty PostgreSQL database instead of a SQLite file")
    given = parser.parse_args(arguments)
    given.workdir.mkdir(parents=True, exist_ok=True)
    path = given.workdir / "store.sqlite"
    for old in given.workdir.glob("store.sqlite*"):
        old.unlink()
    writes(given.store or str(path), given.rows, given.repeats)


if __name__ == "__main__":
    main()
