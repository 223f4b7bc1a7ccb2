"""Answers that were labeled before, for requests that ask the same to the letter.

A request is looked up by what it asks (`decant.ask.ask_key`): neither the model's name nor how an answer is
drawn counts. A label is given only if it is whole, most samples of its question agree with it, and it keeps
the request's bound on tokens.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers

from decant.ask import ask_key
from decant.dataset import Row, read_rows
from decant.errors import ConfigError, StoreError
from decant.reviews import reviewed_answers
from decant.store import Label, RequestStore, store_name
from decant.task import normal_answer, split_thoughts
from decant.wire import ChatRequest
from decant_serve.calls import Call

_log = logging.getLogger(__name__)

# The store is to be quicker than the model; a database that is not there costs a request no more than this.
_LIMIT_S = 0.5
_REFUSALS = ("no-cache", "no-store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which labels may be given; `accepted` holds their keys, None for any."""

    ttl_s: float | None
    prompt_version: str | None
    min_share: float
    accepted: frozenset[bytes] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A label as the answer to a request; tokens are None where the teacher's endpoint told none."""

    text: str
    reasoning: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class Lookup:
    """One model's store of labels; `counts` says how many requests were a hit, a miss, skipped or failed."""

    def __init__(self, store: RequestStore, wanted: Wanted) -> None:
        self._store = store
        self._wanted = wanted
        self.counts: Counter[str] = Counter(hit=0, miss=0, skipped=0, failed=0)

    async def find(self, call: Call, headers: Headers) -> Found | None:
        """The answer, if one may be given. A store that fails is logged, counted, and gives no answer."""
        refused = any(word in headers.get("cache-control", "") for word in _REFUSALS)
        if refused or not isinstance(call.request, ChatRequest) or call.request.logprobs:
            self.counts["skipped"] += 1
            return None
        try:
            async with asyncio.timeout(_LIMIT_S):
                labels = await asyncio.to_thread(self._labels, ask_key(call.body))
        except (StoreError, TimeoutError) as error:
            _log.warning("event=lookup-failed detail=%r", str(error) or "it took too long")
            self.counts["failed"] += 1
            return None
        found = choose(labels, self._wanted, token_limit=call.request.token_limit)
        self.counts["miss" if found is None else "hit"] += 1
        return found

    def _labels(self, ask: str) -> list[Label]:
        """The labels of a question that may vote: those that people accepted, else those they left alone.

        An edited label holds the teacher's words and not the editor's whole answer: it is not given.
        """
        labels, decisions = reviewed_answers(self._store, ask, max_age_s=self._wanted.ttl_s)
        accepted = {of for of, review in decisions.items() if review.decision == "accept"}
        chosen = [label for label in labels if label.key in accepted]
        return chosen or [label for label in labels if label.key not in decisions]

    def close(self) -> None:
        """Closes the store."""
        self._store.close()


def choose(labels: Sequence[Label], wanted: Wanted, *, token_limit: int | None) -> Found | None:
    """The first sample of the answer that most of a question's samples give, if enough of them do.

    Samples that were cut or have no answer count as drawn and never as an answer.
    """
    drawn = [
        label for label in labels if wanted.prompt_version in (None, label.prompt_version) and label.response
    ]
    whole = [(normal_answer(label.answer), label) for label in drawn if label.answer and _is_whole(label)]
    votes = Counter(answer for answer, _ in whole).most_common(2)
    if not votes or (len(votes) > 1 and votes[0][1] == votes[1][1]):
        return None
    winner, count = votes[0]
    if count < wanted.min_share * len(drawn):
        return None
    candidates = (label for answer, label in whole if answer == winner)
    return next(
        (_found(label) for label in candidates if _may_be_given(label, wanted, token_limit=token_limit)), None
    )


def _is_whole(label: Label) -> bool:
    return label.finish_reason in (None, "stop")


def _may_be_given(label: Label, wanted: Wanted, *, token_limit: int | None) -> bool:
    if wanted.accepted is not None and bytes.fromhex(label.key) not in wanted.accepted:
        return False
    # No token is shorter than a byte.
    tokens = label.completion_tokens or len((label.response or "").encode())
    return token_limit is None or tokens <= token_limit


def _found(label: Label) -> Found:
    thoughts, text = split_thoughts(label.response or "")
    return Found(
        text=text,
        reasoning="\n".join(thoughts) or None,
        prompt_tokens=label.prompt_tokens,
        completion_tokens=label.completion_tokens,
    )


def open_lookup(store: str | Path, wanted: Wanted) -> Lookup:
    """A look-up in a store that is there; ConfigError for a path without one."""
    is_path = isinstance(store, Path) or "://" not in store
    if is_path and not Path(store).exists():
        raise ConfigError(f"{store_name(store)}: no such request store; name one that `decant label` filled")
    return Lookup(RequestStore.open(store), wanted)


def read_accepted(path: Path) -> frozenset[bytes]:
    """The keys of the labels that a label file or a training file holds; ConfigError for one with none."""
    keys: set[bytes] = set()
    for row in read_rows(path):
        if isinstance(row, Row) and row.fields.get("status", "done") == "done":
            key = row.fields.get("label_key") or row.fields.get("key")
            if isinstance(key, str):
                keys.add(bytes.fromhex(key))
    if not keys:
        raise ConfigError(f"{path}: no row names its label; give a file of `decant label` or `curate`")
    return frozenset(keys)
