"""A teacher's own distributions beside its answers: the likeliest tokens of each place, kept in the store.

What an endpoint calls `top_logprobs` is bought with the answer and cannot be asked for again, so it is stored
with it, as a row of its own, in the endpoint's words; training's shards are made from it afterwards.
"""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from decant.errors import EndpointError
from decant.store import Answer, Label, NewLabel, RequestStore
from decant.wire import TokenLogprob, canonical_json

# Marks a store row that holds an answer's distributions and is no answer itself.
TOPK = "topk"

# vLLM writes ids in the place of text where it is asked to (return_tokens_as_token_ids).
_TOKEN_ID = re.compile(r"token_id:(\d+)")


@dataclass(frozen=True, slots=True)
class NamedToken:
    """A token as an endpoint names it: by its bytes, its id, both, or (part of a character) neither."""

    raw: bytes | None
    token_id: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """The token that an answer has at one place, and the likeliest there with their log probabilities."""

    token: NamedToken
    top: tuple[tuple[NamedToken, float], ...]


def places_of(tokens: Sequence[TokenLogprob] | None, *, model: str) -> list[Place]:
    """The places of an answer; EndpointError when it came without distributions."""
    if not tokens or not any(token.top_logprobs for token in tokens):
        raise EndpointError(
            f"{model}: its answers carry no top_logprobs, which topk_logprobs asks for; ask an endpoint that"
            " gives them, or score with decant logits where the teacher's weights are at hand"
        )
    return [_place(token) for token in tokens]


def keep_places(store: RequestStore, label: Label, response: str, places: Sequence[Place]) -> None:
    """Stores the places of an answer that is about to be stored; both are there, or the answer is not."""
    key = _row_key(label.key, response)
    row = NewLabel(
        key=key,
        row_id=label.row_id,
        sample=label.sample,
        request={"top_logprobs_of": label.key},
        prompt_version=TOPK,
        teacher=label.teacher,
    )
    store.add([row])
    store.finish(key, Answer(response=_packed(places), finish_reason=TOPK))


def read_places(store: RequestStore, answers: Collection[tuple[str, str]]) -> Mapping[str, list[Place]]:
    """The places of answers, given as the keys of their requests and their text, by key; some have none."""
    wanted = {_row_key(key, response): key for key, response in answers}
    rows = store.get_many(wanted)
    return {wanted[row.key]: _unpacked(row.response) for row in rows.values() if row.response is not None}


def _row_key(key: str, response: str) -> str:
    # With the text in it, distributions can never stand beside an answer that was drawn another time.
    return hashlib.sha256(canonical_json([TOPK, key, response])).hexdigest()


def _place(token: TokenLogprob) -> Place:
    told = token.model_dump()
    top = tuple((_named(one), float(one["logprob"])) for one in token.top_logprobs or ())
    return Place(token=_named(told), top=top)


def _named(told: Mapping[str, Any]) -> NamedToken:
    text, raw, token_id = str(told.get("token", "")), told.get("bytes"), told.get("id")
    if written := _TOKEN_ID.fullmatch(text):
        return NamedToken(None, int(written[1]))
    known = token_id if isinstance(token_id, int) else None
    if isinstance(raw, list):
        return NamedToken(bytes(cast(list[int], raw)), known)
    # U+FFFD stands for bytes that are no text: which ones cannot be seen.
    return NamedToken(None if "\ufffd" in text else text.encode("utf-8", "surrogatepass"), known)


def _packed(places: Sequence[Place]) -> str:
    rows = [[*_written(p.token), [[*_written(named), logprob] for named, logprob in p.top]] for p in places]
    return base64.b85encode(zlib.compress(json.dumps(rows, separators=(",", ":")).encode())).decode()


def _unpacked(text: str) -> list[Place]:
    rows: list[Any] = json.loads(zlib.decompress(base64.b85decode(text)))
    return [
        Place(_read(raw, token_id), tuple((_read(r, i), float(logprob)) for r, i, logprob in top))
        for raw, token_id, top in rows
    ]


def _written(named: NamedToken) -> tuple[str | None, int | None]:
    return (None if named.raw is None else named.raw.decode("latin-1")), named.token_id


def _read(raw: str | None, token_id: int | None) -> NamedToken:
    return NamedToken(None if raw is None else raw.encode("latin-1"), token_id)
