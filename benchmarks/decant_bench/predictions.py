"""A prediction folder: `predictions.jsonl`, one row per request with its answer and timing, and `eval.json`.

Any tool may write one (see benchmarks/README.md for the keys); `decant eval` and `decant baseline` do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from decant.dataset import read_good_rows
from decant.errors import DataError
from decant.files import write_json, write_jsonl
from decant.timing import RequestTiming

PREDICTIONS_FILE = "predictions.jsonl"
EVALUATION_FILE = "eval.json"
BAD_ROW = "bad_row"
"""The error kind of a dataset line that never became a request: it is shown, and scored for nobody."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Failure(_Record):
    """Why a request has no answer."""

    kind: str
    message: str


class Prediction(_Record):
    """One request's outcome. `correct` is None without gold; a failed request with gold is not correct."""

    id: str
    gold: str | None = None
    group: str | None = None
    length: int | float | str | None = None
    answer: str | None = None
    reasoning: str | None = None
    response: str | None = None
    correct: bool | None = None
    status: Literal["done", "failed"]
    finish_reason: str | None = None
    error: Failure | None = None
    timing: dict[str, Any] | None = None

    @property
    def request_timing(self) -> RequestTiming | None:
        """The request's timing, where it was sent."""
        return RequestTiming.from_dict(self.timing) if self.timing else None


class Prices(_Record):
    """What the endpoint costs, as the replay's config states it."""

    price_per_hour: float | None = None
    usd_per_million_prompt_tokens: float | None = None
    usd_per_million_completion_tokens: float | None = None


class GoldenBreakRecord(_Record):
    """One golden prompt that the served model did not reproduce."""

    kind: str


class GoldenRecord(_Record):
    """The golden-prompt check that the server made when it loaded the model."""

    checked: int
    breaks: tuple[GoldenBreakRecord, ...] = ()
    max_logprob_gap: float | None = None
    flips: int | None = None


class ModelRecord(_Record):
    """What was asked: its id, where it came from, and whatever the endpoint says of it."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    id: str | None = None
    source: str | None = None
    size_bytes: int | None = None
    golden: GoldenRecord | None = None


class TokenRecord(_Record):
    """Tokens per completed request, and the share of prompt tokens that came from the server's cache."""

    prompt_mean: float | None = None
    completion_mean: float | None = None
    cached_prompt_share: float | None = None


class SaturationRecord(_Record):
    """The capacity that a closed-loop burst showed."""

    requests_per_s: float | None = None
    n: int | None = None
    failed: int | None = None
    clients: int | None = None
    wall_s: float | None = None
    cached_prompt_share: float | None = None


class Evaluation(_Record):
    """What eval.json holds. Only `stage` is needed; a ledger shows nothing where a key is missing."""

    format_version: Literal[1] = 1
    stage: str
    engine: str | None = None
    model: ModelRecord = ModelRecord()
    n: int | None = None
    counts: dict[str, Any] = {}
    load: dict[str, Any] = {}
    latency: dict[str, Any] = {}
    tokens: TokenRecord = TokenRecord()
    saturation: SaturationRecord = SaturationRecord()
    warmup: dict[str, Any] = {}
    prices: Prices = Prices()
    hardware: dict[str, Any] = {}
    versions: dict[str, str] = {}
    command: str | None = None
    commit: str | None = None
    config: dict[str, Any] = {}

    @field_validator("model", "tokens", "saturation", "prices", mode="before")
    @classmethod
    def _null_is_nothing(cls, value: Any) -> Any:
        return {} if value is None else value


@dataclass(frozen=True, slots=True)
class PredictionFolder:
    """A prediction folder, read and checked: every id stands once."""

    path: Path
    evaluation: Evaluation
    predictions: tuple[Prediction, ...]


def write_predictions(folder: Path, predictions: Sequence[Prediction], evaluation: Evaluation) -> None:
    """Replaces what `folder` held; eval.json goes first and comes last, so that no half replay is read."""
    (folder / EVALUATION_FILE).unlink(missing_ok=True)
    write_jsonl(folder / PREDICTIONS_FILE, (prediction.model_dump(mode="json") for prediction in predictions))
    write_json(folder / EVALUATION_FILE, evaluation.model_dump(mode="json"))


def read_predictions(folder: Path) -> PredictionFolder:
    """Reads a prediction folder; DataError names the file and line that cannot be used."""
    again = "run `decant eval` again"
    evaluation_file, predictions_file = folder / EVALUATION_FILE, folder / PREDICTIONS_FILE
    if not evaluation_file.is_file() or not predictions_file.is_file():
        raise DataError(
            f"{folder}: is no prediction folder (needs {PREDICTIONS_FILE} and {EVALUATION_FILE}); {again}"
        )
    try:
        evaluation = Evaluation.model_validate_json(evaluation_file.read_bytes())
    except ValidationError as error:
        raise DataError(f"{evaluation_file}: {_first_problem(error)}; {again}") from None
    predictions: dict[str, Prediction] = {}
    for row in read_good_rows(predictions_file):
        try:
            prediction = Prediction.model_validate(row.fields)
            _ = prediction.request_timing
        except (ValidationError, TypeError) as error:
            reason = _first_problem(error) if isinstance(error, ValidationError) else f"timing: {error}"
            raise DataError(f"{predictions_file}:{row.line}: {reason}; {again}") from None
        if prediction.id in predictions:
            raise DataError(
                f"{predictions_file}:{row.line}: request id {prediction.id} stands twice; {again}"
            )
        predictions[prediction.id] = prediction
    if not predictions:
        raise DataError(f"{predictions_file}: holds no predictions; {again}")
    return PredictionFolder(folder, evaluation, tuple(predictions.values()))


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
