"""Which requests a labeling job is made of, as far as its answers so far decide it."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from decant import store
from decant_distill.label_hint import reaches
from decant_distill.label_requests import Ask, Job, Question, Unaskable
from decant_distill.label_votes import further_samples

_ROWS_PER_CHUNK = 200

GetMany = Callable[[Collection[str]], Mapping[str, store.Label]]


@dataclass(frozen=True, slots=True)
class Planned:
    """One row with its requests, one per sample; a row that cannot be asked has none."""

    row: Question | Unaskable
    asks: tuple[Ask, ...] = ()


def plan(job: Job, get_many: GetMany) -> Iterator[list[Planned]]:
    """The job's rows in dataset order, some hundred at a time, with the requests that they need by now.

    With `max_samples`, a row whose answers are all there and do not agree surely enough needs more; with a
    hint, one whose answers all miss gold is asked why gold is right. The plan follows from the dataset and
    the stored answers alone, whoever makes it.
    """
    rows = iter(job)
    while chunk := list(islice(rows, _ROWS_PER_CHUNK)):
        yield _planned(job, chunk, get_many)


def asks_in(chunk: list[Planned]) -> list[Ask]:
    """The requests of a chunk."""
    return [ask for planned in chunk for ask in planned.asks]


def _planned(job: Job, rows: list[Question | Unaskable], get_many: GetMany) -> list[Planned]:
    first = range(job.sampling.samples)
    asks = {
        place: [job.ask(row, sample) for sample in first]
        for place, row in enumerate(rows)
        if isinstance(row, Question)
    }
    if job.sampling.max_samples is not None:
        undecided = asks
        while undecided:
            undecided = _extend(job, undecided, get_many)
    if job.hint is not None:
        _hint(job, asks, get_many)
    return [Planned(row, tuple(asks.get(place, ()))) for place, row in enumerate(rows)]


def _extend(job: Job, asks: dict[int, list[Ask]], get_many: GetMany) -> dict[int, list[Ask]]:
    """Adds the requests that the answers call for; returns the rows that got some."""
    known = get_many([ask.key for drawn in asks.values() for ask in drawn])
    extended: dict[int, list[Ask]] = {}
    for place, drawn in asks.items():
        further = _further(job, [known.get(ask.key) for ask in drawn])
        if further:
            question, count = drawn[0].question, len(drawn)
            drawn.extend(job.ask(question, sample) for sample in range(count, count + further))
            extended[place] = drawn
    return extended


def _hint(job: Job, asks: dict[int, list[Ask]], get_many: GetMany) -> None:
    """Adds one hinted request to each row whose samples are all there and all miss its gold."""
    known = get_many([ask.key for drawn in asks.values() for ask in drawn])
    for drawn in asks.values():
        question = drawn[0].question
        labels = [known.get(ask.key) for ask in drawn]
        if question.gold is not None and all(_misses(job, label, question.gold) for label in labels):
            drawn.append(job.ask(question, len(drawn), hinted=True))


def _misses(job: Job, label: store.Label | None, gold: str) -> bool:
    if label is None or label.status != "done" or label.response is None:
        return False  # a request that failed says nothing of what the teacher can do
    said = job.read(label.response, label.finish_reason).answer
    return said is None or not reaches(said, gold)


def _further(job: Job, labels: list[store.Label | None]) -> int:
    answers: list[str | None] = []
    for label in labels:
        if label is None or label.status in ("pending", "leased"):
            return 0
        said = job.read(label.response, label.finish_reason) if label.response is not None else None
        answers.append(said.answer if said else None)
    assert job.sampling.max_samples is not None
    return further_samples(answers, most=job.sampling.max_samples, confidence=job.sampling.confidence)
