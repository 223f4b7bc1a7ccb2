"""One batch's requests in the store: registered from its file, recorded, written out in their order."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from decant.store import Answer, Label, NewLabel, RequestStore
from decant_serve.background import Answered
from decant_serve.batch_input import BatchRequest, Problem, read_input
from decant_serve.batch_objects import Batch
from decant_serve.stored_files import FileBox, NewFile

ROWS_PER_CHUNK = 200
_OK = 200
_UNANSWERED = {
    "expired": ("batch_expired", "This request was not answered within the batch's completion window."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was answered."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What a file holds: its requests, the model if it is one, or why it is refused."""

    total: int
    model: str | None
    problems: tuple[Problem, ...]


class BatchWork:
    """A batch's requests. Calls block: async code uses a thread."""

    def __init__(self, store: RequestStore, files: FileBox, batch: Batch) -> None:
        self._store = store
        self._files = files
        self._batch = batch

    def register(self, models: Collection[str]) -> Registered:
        """Reads the file twice: a batch with a problem anywhere leaves nothing behind."""
        total, asked, problems = 0, set[str](), list[Problem]()
        try:
            for found in self._input(models):
                if isinstance(found, Problem):
                    problems.append(found)
                else:
                    total += 1
                    asked.add(found.body["model"])
            if not problems:
                requests = (found for found in self._input(models) if isinstance(found, BatchRequest))
                while chunk := list(islice(requests, ROWS_PER_CHUNK)):
                    self._store.add(self._row(request) for request in chunk)
        except FileNotFoundError:
            problems.append(Problem(line=None, code="file_not_found", message="the input file was deleted"))
        return Registered(
            total=total, model=asked.pop() if len(asked) == 1 else None, problems=tuple(problems)
        )

    def _input(self, models: Collection[str]) -> Iterator[BatchRequest | Problem]:
        path = self._files.path(self._batch.input_file_id)
        return read_input(path, endpoint=self._batch.endpoint, models=models)

    def _row(self, request: BatchRequest) -> NewLabel:
        return NewLabel(
            key=self._key(request.place),
            row_id=request.custom_id,
            sample=request.place,
            request=request.body,
            prompt_version=self._batch.id,
            teacher=request.body["model"],
        )

    def _key(self, place: int) -> str:
        return hashlib.sha256(f"{self._batch.id}:{place}".encode()).hexdigest()

    def chunks(self) -> Iterator[list[str]]:
        """The keys of all requests, some hundred at a time."""
        places = iter(range(self._batch.total))
        while chunk := list(islice(places, ROWS_PER_CHUNK)):
            yield [self._key(place) for place in chunk]

    def counts(self) -> tuple[int, int]:
        """How many requests were answered, and how many failed."""
        completed = failed = 0
        for keys in self.chunks():
            statuses = [label.status for label in self._store.get_many(keys).values()]
            completed += statuses.count("done")
            failed += statuses.count("failed")
        return completed, failed

    def record(self, key: str, request_id: str, answered: Answered) -> bool:
        """Keeps a request's result; says whether it is an answer."""
        result = {"status_code": answered.status, "request_id": request_id, "body": _parsed(answered.body)}
        text = json.dumps(result, ensure_ascii=False)
        if answered.status == _OK:
            self._store.finish(key, Answer(response=text))
        else:
            self._store.fail(key, f"http_{answered.status}", text, retryable=False)
        return answered.status == _OK

    def give_back(self, key: str) -> None:
        """Leaves a request to be asked later."""
        self._store.fail(key, "interrupted", "the server stopped before the answer came", retryable=True)

    def write_files(self, why: str) -> dict[str, Any]:
        """Writes the output and error files, each if it has a line; the batch's fields that name them.

        Their ids follow from the batch's, so that a kill in between leaves no second pair.
        """
        batch = self._batch
        usage = _Usage()
        ids = {name: f"file-{batch.id.removeprefix('batch_')}{name[0]}" for name in ("output", "error")}
        lines = dict.fromkeys(ids, 0)
        with (
            self._files.writing(ids["output"], self._about("output")) as output,
            self._files.writing(ids["error"], self._about("error")) as error,
        ):
            for label in self._labels():
                line, is_answer = _line(label, why)
                if is_answer:
                    usage.add(line["response"]["body"])
                (output if is_answer else error).write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                lines["output" if is_answer else "error"] += 1
        for name, count in lines.items():
            if not count:
                self._files.delete(ids[name])
        named = {f"{name}_file_id": ids[name] if lines[name] else None for name in ids}
        return {**named, "usage": usage.to_wire()}

    def forget(self) -> None:
        """Removes the requests from the store: what became of them is in the files."""
        for keys in self.chunks():
            self._store.forget(keys)

    def _about(self, name: str) -> NewFile:
        return NewFile(
            owner=self._batch.owner,
            filename=f"{self._batch.id}_{name}.jsonl",
            purpose="batch_output",
            expires_in_s=self._batch.output_expires_in_s,
        )

    def _labels(self) -> Iterator[Label]:
        for keys in self.chunks():
            known = self._store.get_many(keys)
            yield from (known[key] for key in keys)


class _Usage:
    """The tokens of a batch, under the names of the Responses API as OpenAI's batch object has them."""

    def __init__(self) -> None:
        self._input_tokens = 0
        self._output_tokens = 0
        self._cached_tokens = 0

    def add(self, body: Mapping[str, Any]) -> None:
        """Counts one answer, of any endpoint."""
        usage: Mapping[str, Any] = body.get("usage") or {}
        details: Mapping[str, Any] = (
            usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        )
        self._input_tokens += usage.get("prompt_tokens") or usage.get("input_tokens") or 0
        self._output_tokens += usage.get("completion_tokens") or usage.get("output_tokens") or 0
        self._cached_tokens += details.get("cached_tokens") or 0

    def to_wire(self) -> dict[str, Any]:
        """The batch's `usage`."""
        return {
            "input_tokens": self._input_tokens,
            "input_tokens_details": {"cached_tokens": self._cached_tokens},
            "output_tokens": self._output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._input_tokens + self._output_tokens,
        }


def _line(label: Label, why: str) -> tuple[dict[str, Any], bool]:
    """A line of the output or error file, and whether it is an answer."""
    common = {"id": f"batch_req_{label.key[:32]}", "custom_id": label.row_id}
    if label.status == "done" and label.response is not None:
        return {**common, "response": json.loads(label.response), "error": None}, True
    if label.status == "failed" and label.error is not None:
        return {**common, "response": json.loads(label.error), "error": None}, False
    code, message = _UNANSWERED[why]
    return {**common, "response": None, "error": {"code": code, "message": message}}, False


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
