"""How outcomes of a job reach the store: in groups, each committed before it counts."""

import asyncio
from pathlib import Path

import pytest

from decant.api_error import ApiError
from decant.errors import StoreError
from decant.store import Answer, NewLabel, RequestStore
from decant.wire import ErrorBody
from decant_distill.label_record import Recorder


def store_of(folder: Path, *keys: str) -> RequestStore:
    store = RequestStore.open(folder / "s.sqlite")
    store.add(NewLabel(key=key, row_id=key, sample=0, request={"messages": []}) for key in keys)
    return store


class CountingStore(RequestStore):
    """Counts the transactions that answers take."""

    groups = 0

    def finish_many(self, answers: object) -> None:
        """What a group commits."""
        self.groups += 1
        super().finish_many(answers)  # pyright: ignore[reportArgumentType] - passed on as it came


async def test_a_recorded_outcome_is_in_the_store(tmp_path: Path) -> None:
    refused = ApiError("too long", kind="bad_request", error=ErrorBody(message="too long"), status=400)
    with store_of(tmp_path, "a", "b") as store:
        recorder = Recorder(store)
        await asyncio.gather(recorder.record("a", Answer(response="x")), recorder.record("b", refused))
        assert [store.get_many("ab")[key].status for key in "ab"] == ["done", "failed"]
        assert store.get_many("b")["b"].error_class == "bad_request"


async def test_what_comes_while_one_commits_is_committed_together(tmp_path: Path) -> None:
    keys = [f"k{number}" for number in range(200)]
    store_of(tmp_path, *keys).close()
    with CountingStore.open(tmp_path / "s.sqlite") as store:
        recorder = Recorder(store)
        await asyncio.gather(*(recorder.record(key, Answer(response="x")) for key in keys))
        assert (store.counts()["done"], store.groups <= 2) == (200, True)


async def test_whoever_waits_for_a_commit_that_failed_hears_of_it_and_the_next_one_goes_on(
    tmp_path: Path,
) -> None:
    with store_of(tmp_path, "a") as store:
        recorder = Recorder(store)
        with pytest.raises(StoreError, match="no request stranger in the store"):
            await recorder.record("stranger", Answer(response="x"))
        await recorder.record("a", Answer(response="x"))
        assert store.counts()["done"] == 1


async def test_a_commit_that_nobody_waits_for_any_more_is_still_made(tmp_path: Path) -> None:
    with store_of(tmp_path, "a") as store:
        recorder = Recorder(store)
        waiting = asyncio.create_task(recorder.record("a", Answer(response="x")))
        await asyncio.sleep(0)
        waiting.cancel()
        await recorder.flush()
        assert store.counts()["done"] == 1
