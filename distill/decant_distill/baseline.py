"""The baseline stage: TF-IDF and logistic regression on the same requests, for a student to beat.

It writes the folder that `decant eval` writes, and takes its place in a ledger as one more row.
"""

import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from decant.config import Config, InputPath, OutputPath
from decant.dataset import BadRow, Row, read_rows
from decant.errors import DataError, MissingExtraError
from decant.files import folder_aside, sha256_file, write_json, write_jsonl
from decant.hardware import provenance
from decant.progress import Progress
from decant.task import TaskConfig, same_answer
from decant.timing import RequestTiming, summarize
from decant_distill.label_requests import read_limited
from decant_distill.labels import BAD_ROW

if TYPE_CHECKING:
    import numpy as np

_MOST_WARMUPS = 8


class BaselineConfig(Config):
    """What to learn from, and what to answer."""

    train: InputPath = Field(description="curated training set, or any dataset with gold")
    data: InputPath = Field(description="evaluation dataset (JSONL), the one that `decant eval` replays")
    output: OutputPath = Field(description="folder for predictions.jsonl and eval.json")
    stage: str = Field(default="baseline", description="name of the stage in the ledger")
    task: TaskConfig = Field(
        default=TaskConfig(), description="which fields of a row are its prompt and its gold"
    )
    limit: int | None = Field(default=None, ge=1, description="answer only the first lines of the dataset")
    inverse_penalty: float = Field(default=10.0, gt=0, description="C of the logistic regression")
    seed: int = Field(default=0, ge=0, description="order in which the fit visits the rows")


CONFIG = BaselineConfig


def run(config: BaselineConfig) -> None:
    """Fits on the training set, answers the evaluation set one request at a time, and writes the folder."""
    lesson = read_lesson(config)
    classifier = fit(lesson, inverse_penalty=config.inverse_penalty, seed=config.seed)
    exam = _read_exam(config)
    for question in exam.asked[:_MOST_WARMUPS]:
        classifier.predict(question.text.casefold())
    started_s = time.perf_counter()
    with Progress(len(exam.asked), unit="requests", label=config.stage) as progress:
        predictions: list[dict[str, Any]] = []
        for question in exam.asked:
            predictions.append(_predict(classifier, question))
            progress.advance(1)
    wall_s = time.perf_counter() - started_s
    predictions += exam.unusable
    evaluation = _evaluation(config, lesson, classifier, exam, wall_s)
    with folder_aside(config.output) as folder:
        write_jsonl(folder / "predictions.jsonl", predictions)
        write_json(folder / "eval.json", evaluation)
    print(_report(config, predictions, classifier))


@dataclass(frozen=True, slots=True)
class Lesson:
    """Texts with their answers; `bad_rows` counts lines that gave none."""

    texts: list[str]
    answers: list[str]
    bad_rows: int


def read_lesson(config: BaselineConfig) -> Lesson:
    """The training rows: `prompt` and `answer` of a curated set, else the task's prompt and gold.

    DataError when they hold fewer than two different answers.
    """
    texts: list[str] = []
    answers: list[str] = []
    bad_rows = 0
    for row in read_rows(config.train):
        pair = _lesson_pair(row, config.task)
        if pair is None:
            bad_rows += 1
        else:
            texts.append(pair[0])
            answers.append(pair[1])
    if len(set(answers)) < 2:
        found = f"{len(texts)} rows with {len(set(answers))} different answers, {bad_rows} that have none"
        raise DataError(
            f"{config.train}: a classifier needs two answers or more ({found}); check the task's fields"
        )
    return Lesson(texts, answers, bad_rows)


def _lesson_pair(row: Row | BadRow, task: TaskConfig) -> tuple[str, str] | None:
    if isinstance(row, BadRow):
        return None
    match row.fields:
        case {"prompt": [*_, {"content": str(text)}], "answer": str(answer)}:
            return text, answer
        case _:
            pass
    gold = task.gold(row.fields)
    try:
        return None if gold is None else (task.messages(row.fields)[-1]["content"], gold)
    except DataError:
        return None


@dataclass(frozen=True, slots=True)
class Classifier:
    """A logistic regression per answer over TF-IDF features; `weights` is (features, answers)."""

    vectorizer: Any
    weights: "np.ndarray[Any, np.dtype[np.float32]]"
    biases: "np.ndarray[Any, np.dtype[np.float32]]"
    answers: tuple[str, ...]
    fit_s: float

    def predict(self, text: str) -> str:
        """The answer whose regression is surest."""
        scores = self.vectorizer.transform([text]) @ self.weights + self.biases
        return self.answers[int(scores.argmax())]

    @property
    def size_bytes(self) -> int:
        """What it would take on disk."""
        return len(pickle.dumps((self.vectorizer, self.weights, self.biases, self.answers)))


def fit(lesson: Lesson, *, inverse_penalty: float, seed: int) -> Classifier:
    """Fits words, word pairs and character n-grams of 2 to 5 within words, each answer against the rest."""
    try:
        import numpy as np
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import FeatureUnion
    except ImportError:
        raise MissingExtraError("scikit-learn", "baseline") from None

    started_s = time.perf_counter()
    # Features seen once teach nothing; the smallest sets have no others.
    min_df = 2 if len(lesson.texts) >= 200 else 1
    shared: dict[str, Any] = {"sublinear_tf": True, "min_df": min_df, "dtype": np.float32}
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", **shared)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), **shared)
    vectorizer: Any = FeatureUnion([("words", words), ("characters", characters)])
    features: Any = vectorizer.fit_transform(lesson.texts)
    given = np.array(lesson.answers)
    answers = tuple(sorted(set(lesson.answers)))
    weights = np.zeros((features.shape[1], len(answers)), dtype=np.float32)
    biases = np.zeros(len(answers), dtype=np.float32)
    with Progress(len(answers), unit="classes", label="baseline: fit") as progress:
        for index, answer in enumerate(answers):
            model: Any = LogisticRegression(
                C=inverse_penalty, solver="liblinear", dual=True, random_state=seed, max_iter=1000
            )
            model.fit(features, given == answer)
            weights[:, index], biases[index] = model.coef_[0], model.intercept_[0]
            progress.advance(1)
    return Classifier(vectorizer, weights, biases, answers, time.perf_counter() - started_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request of the evaluation set, as `decant eval` would send it."""

    id: str
    text: str
    gold: str | None
    group: str | None
    length: int | float | str | None


@dataclass(frozen=True, slots=True)
class Exam:
    """The evaluation set's requests, and the predictions of lines that give none."""

    asked: list[Question]
    unusable: list[dict[str, Any]]


def _read_exam(config: BaselineConfig) -> Exam:
    """The requests that `decant eval` makes of this dataset, so that a ledger joins them one to one."""
    asked: dict[str, Question] = {}
    unusable: list[dict[str, Any]] = []
    for row in read_limited(config.data, config.limit):
        if isinstance(row, BadRow):
            unusable.append(_unusable(f"line-{row.line}", None, f"line {row.line}: {row.reason}"))
            continue
        row_id, gold = config.task.row_id(row.fields, row.line), config.task.gold(row.fields)
        try:
            text = config.task.messages(row.fields)[-1]["content"]
        except DataError as error:
            unusable.append(_unusable(row_id, gold, f"line {row.line}: {error}"))
            continue
        if row_id in asked:
            again = f"{row_id} (line {row.line})"
            unusable.append(_unusable(again, gold, f"line {row.line}: id {row_id} stands twice"))
            continue
        group, length = row.fields.get(config.task.group_field), row.fields.get(config.task.length_field)
        asked[row_id] = Question(
            id=row_id,
            text=text,
            gold=gold,
            group=None if group is None else str(group),
            length=length if length is None or isinstance(length, int | float) else str(length),
        )
    if not asked:
        raise DataError(f"{config.data}: no line can be answered; check the task's fields")
    return Exam(list(asked.values()), unusable)


def _unusable(row_id: str, gold: str | None, message: str) -> dict[str, Any]:
    error = {"kind": BAD_ROW, "message": message}
    return {"id": row_id, "gold": gold, "status": "failed", "correct": None, "error": error, "timing": None}


def _predict(classifier: Classifier, question: Question) -> dict[str, Any]:
    actual_s = time.perf_counter()
    answer = classifier.predict(question.text)
    took_s = time.perf_counter() - actual_s
    # The answer comes whole, so its first piece is its last; without HTTP it has no status or first byte.
    timing = RequestTiming(
        request_id=question.id,
        actual_s=actual_s,
        ttft_s=took_s,
        e2e_s=took_s,
        chunk_times_s=(took_s,),
        finish_reason="stop",
    )
    return {
        "id": question.id,
        "gold": question.gold,
        "group": question.group,
        "length": question.length,
        "answer": answer,
        "reasoning": None,
        "response": answer,
        "correct": None if question.gold is None else same_answer(answer, question.gold),
        "status": "done",
        "finish_reason": "stop",
        "error": None,
        "timing": timing.to_dict(),
    }


def _evaluation(
    config: BaselineConfig, lesson: Lesson, classifier: Classifier, exam: Exam, wall_s: float
) -> dict[str, Any]:
    asked, unusable = len(exam.asked), len(exam.unusable)
    return {
        "format_version": 1,
        "stage": config.stage,
        "engine": "scikit-learn",
        "model": {
            "id": "tfidf-logistic-regression",
            "source": str(config.train),
            "size_bytes": classifier.size_bytes,
        },
        "n": asked + unusable,
        "counts": {"requests": asked, "completed": asked, "errors": {BAD_ROW: unusable} if unusable else {}},
        "load": _load(config, asked),
        "saturation": {
            "requests_per_s": asked / wall_s,
            "n": asked,
            "failed": 0,
            "clients": 1,
            "wall_s": wall_s,
        },
        "warmup": {"n": min(asked, _MOST_WARMUPS), "failed": 0},
        "training": {
            "rows": len(lesson.texts),
            "bad_rows": lesson.bad_rows,
            "classes": len(classifier.answers),
            "features": len(classifier.weights),
            "wall_s": classifier.fit_s,
        },
        **provenance(Path(__file__).parent),
        "config": config.model_dump(mode="json"),
    }


def _load(config: BaselineConfig, asked: int) -> dict[str, Any]:
    """One client that sends its next request when the last is answered."""
    return {
        "arrival": "closed",
        "rate": None,
        "clients": 1,
        "seed": None,
        "requests": asked,
        "data_sha256": sha256_file(config.data),
    }


def _report(config: BaselineConfig, predictions: Sequence[dict[str, Any]], classifier: Classifier) -> str:
    graded = [prediction["correct"] for prediction in predictions if prediction["correct"] is not None]
    took_s = summarize(timing["e2e_s"] for prediction in predictions if (timing := prediction["timing"]))
    assert took_s["p50"] is not None
    accuracy = (
        f"accuracy {sum(graded) / len(graded):.1%} ({sum(graded)} of {len(graded)})" if graded else "no gold"
    )
    return (
        f"{config.stage}: {accuracy}, {len(classifier.answers)} answers learned in {classifier.fit_s:.1f} s, "
        f"{1000 * took_s['p50']:.2f} ms per request -> {config.output}"
    )
