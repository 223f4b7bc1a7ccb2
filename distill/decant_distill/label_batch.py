"""The same job through a provider's Batch API: requests out as JSONL, results in, in whatever order.

The format is OpenAI's: a request has `custom_id`, `method`, `url` and `body`, a result `custom_id` with
`response` or `error`. The `custom_id` is the request's key in the store: nothing is matched by its place.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from decant.dataset import BadRow, Row, read_rows
from decant.errors import DataError, StageError
from decant.files import write_jsonl
from decant.store import Answer, Label, RequestStore
from decant.wire import ChatResponse, parse_error
from decant_distill.key_set import KeySet
from decant_distill.label_plan import asks_in, plan
from decant_distill.label_requests import Job
from decant_distill.label_spend import Prices

URL = "/v1/chat/completions"
_ERROR_CHARACTERS = 500
_RESULTS_PER_COMMIT = 500
_OPEN = ("pending", "leased")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What came of a result file; `strangers` are results of no request in the store."""

    answered: int = 0
    failed: int = 0
    strangers: int = 0
    unreadable: int = 0

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.answered} answers taken, {self.failed} requests failed, "
            f"{self.strangers} results of other jobs, {self.unreadable} lines unreadable"
        )


def write_requests(
    job: Job, store: RequestStore, path: Path, *, prices: Prices | None, left_usd: float | None
) -> int:
    """Writes the job's open requests as one batch and returns how many there are.

    StageError when the worst case of the whole batch is more than `left_usd`: a batch cannot be stopped.
    """
    check_budget(open_requests(job, store), prices=prices, left_usd=left_usd)
    return write_jsonl(path, map(batch_line, open_requests(job, store)))


def check_budget(labels: Iterable[Label], *, prices: Prices | None, left_usd: float | None) -> None:
    """StageError when all these requests may cost more than is left: a batch cannot be stopped."""
    if prices is None or left_usd is None:
        return
    worst_usd = sum(prices.worst_case_usd(label.request) for label in labels)
    if worst_usd > left_usd:
        raise StageError(
            f"the batch may cost up to ${worst_usd:.4g} and ${left_usd:.4g} of the budget is left; "
            "raise budget_usd, lower max_tokens, or label fewer rows with limit"
        )


def batch_line(label: Label) -> dict[str, Any]:
    """A request as a line of a batch's input."""
    return {"custom_id": label.key, "method": "POST", "url": URL, "body": label.request}


def take_results(job: Job, store: RequestStore, path: Path, *, prices: Prices | None) -> Taken:
    """Records every result of a batch; one that is there already stays, so that a file may be taken twice."""
    taken = take_lines(job, store, path, prices=prices)
    if not taken.answered + taken.failed:
        raise DataError(f"{path}: no result of this job; is it the output file of its batch?")
    return taken


def take_lines(job: Job, store: RequestStore, path: Path, *, prices: Prices | None) -> Taken:
    """The same for a file that may hold nothing of this job."""
    counts: Counter[str] = Counter()
    rows = read_rows(path)
    while chunk := list(islice(rows, _RESULTS_PER_COMMIT)):
        results = {str(row.fields.get("custom_id")): row.fields for row in chunk if isinstance(row, Row)}
        counts["unreadable"] += sum(isinstance(row, BadRow) for row in chunk)
        known = store.get_many(results)
        answers: list[tuple[str, Answer]] = []
        for key, result in results.items():
            counts[_take(job, store, known.get(key), result, prices=prices, answers=answers)] += 1
        store.finish_many(answers)
    return Taken(**counts)


def open_requests(job: Job, store: RequestStore) -> Iterator[Label]:
    """What is to be asked yet, each request once."""
    seen = KeySet()
    for chunk in plan(job, store.get_many):
        known = store.get_many(ask.key for ask in asks_in(chunk))
        for key in dict.fromkeys(ask.key for ask in asks_in(chunk)):
            label = known.get(key)
            if label is not None and label.status in _OPEN and seen.add(key):
                yield label


def _take(
    job: Job,
    store: RequestStore,
    label: Label | None,
    result: dict[str, Any],
    *,
    prices: Prices | None,
    answers: list[tuple[str, Answer]],
) -> str:
    """What a result counts as; an answer is added to `answers`, a failure recorded."""
    if label is None:
        return "strangers"
    if label.status == "done":
        return "answered"
    response: dict[str, Any] = result.get("response") or {}
    if result.get("error") or response.get("status_code") != 200:
        found = parse_error(result) or parse_error(response.get("body"))
        words = found.message if found else f"HTTP {response.get('status_code')}"
        kind = "batch_error" if result.get("error") else "bad_request"
        store.fail(label.key, kind, words[:_ERROR_CHARACTERS], retryable=False)
        return "failed"
    try:
        answer = _answer(job, ChatResponse.model_validate(response.get("body")), label, prices)
    except ValidationError as error:
        words = f"not a chat answer ({error.error_count()} faults)"
        store.fail(label.key, "bad_response", words, retryable=False)
        return "failed"
    answers.append((label.key, answer))
    return "answered"


def _answer(job: Job, whole: ChatResponse, label: Label, prices: Prices | None) -> Answer:
    choice, usage = whole.choices[0], whole.usage
    cost_usd = None
    if prices is not None:
        cost_usd = prices.tokens_usd(usage) if usage else prices.worst_case_usd(label.request)
    return job.answer(
        choice.message.content or "",
        choice.message.reasoning_text,
        finish_reason=choice.finish_reason,
        usage=usage,
        cost_usd=cost_usd,
    )
