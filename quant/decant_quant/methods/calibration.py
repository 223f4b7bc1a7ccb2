"""Calibration and held-out rows: the user's own data through the model's tokenizer and chat template.

The choice is seeded and follows the lengths of what it is taken from: rows are sorted by length and cut into
as many parts as there are rows to choose, one out of each.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from decant.dataset import Row, read_good_rows
from decant.errors import DataError, MissingExtraError, QuantizeError
from decant_quant.options import CalibrationConfig

_TEXT_SUFFIXES = (".txt", ".md")


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row as token ids. From `answer_start` on it is the answer (1 where there is no telling).

    `question` identifies what was asked, whatever the answer, case and white space; `where` is file:line.
    """

    token_ids: tuple[int, ...]
    answer_start: int
    question: str
    where: str


@dataclass(frozen=True, slots=True)
class ChosenRows:
    """Rows to calibrate on and rows to measure on, no question in both; `left_out` were too long."""

    calibration: tuple[TokenRow, ...]
    heldout: tuple[TokenRow, ...]
    left_out: int

    @property
    def digest(self) -> str:
        """A hash of the calibration rows' token ids, in order."""
        text = "\n".join(" ".join(map(str, row.token_ids)) for row in self.calibration)
        return hashlib.sha256(text.encode()).hexdigest()


def choose_rows(
    model: Path, config: CalibrationConfig, *, context: int, calibrates: bool = True
) -> ChosenRows:
    """Reads and chooses rows for a model with this context; DataError for rows that are too few or too long,
    or a question that is in both files. Only where nothing `calibrates` may there be a held-out file alone.
    """
    if config.dataset is None and (calibrates or config.heldout is None):
        raise QuantizeError(
            "the method needs rows to calibrate on: --set calibration.dataset=FILE, a JSONL dataset or a text"
            " file"
        )
    if config.max_tokens > context:
        raise QuantizeError(
            f"calibration.max_tokens is {config.max_tokens}, but {model} has a context of {context}; lower it"
        )
    tokenizer = load_tokenizer(model)
    if config.dataset is None:
        assert config.heldout is not None
        alone, left_out = _fitting(_read(config.heldout, tokenizer, config), config)
        chosen = _balanced(alone, config.heldout_rows, config.heldout, seed=config.seed)
        return ChosenRows(calibration=(), heldout=chosen, left_out=left_out)
    rows, left_out = _fitting(_read(config.dataset, tokenizer, config), config)
    if config.heldout is None:
        return _split(rows, config, left_out)
    heldout, _ = _fitting(_read(config.heldout, tokenizer, config), config)
    _refuse_shared(rows, heldout, config)
    return ChosenRows(
        calibration=_balanced(rows, config.rows, config.dataset, seed=config.seed),
        heldout=_balanced(heldout, config.heldout_rows, config.heldout, seed=config.seed),
        left_out=left_out,
    )


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer; QuantizeError when transformers cannot read it."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtraError("transformers", "transformers") from None
    try:
        # transformers loads its names lazily, where a type checker cannot see them.
        return cast("Any", AutoTokenizer).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise QuantizeError(
            f"{folder}: its tokenizer cannot be read ({error}); copy the folder again"
        ) from None


def _split(rows: list[TokenRow], config: CalibrationConfig, left_out: int) -> ChosenRows:
    """Both parts out of one file: every question goes to one of them."""
    assert config.dataset is not None
    wanted = config.rows + config.heldout_rows
    by_question: dict[str, list[TokenRow]] = {}
    for row in rows:
        by_question.setdefault(row.question, []).append(row)
    firsts = [same[0] for same in by_question.values()]
    if len(firsts) < wanted:
        raise DataError(
            f"{config.dataset}: {len(firsts)} different questions of up to {config.max_tokens} tokens, but"
            f" calibration.rows + calibration.heldout_rows are {wanted}; lower them or give more rows"
        )
    both = _balanced(firsts, wanted, config.dataset, seed=config.seed)
    # Every part of the sorted whole is thinned alike, so both halves keep the lengths' distribution.
    taken = {
        round((index + 0.5) * wanted / config.heldout_rows - 0.5) for index in range(config.heldout_rows)
    }
    return ChosenRows(
        calibration=tuple(row for index, row in enumerate(both) if index not in taken),
        heldout=tuple(row for index, row in enumerate(both) if index in taken),
        left_out=left_out,
    )


def _balanced(rows: Sequence[TokenRow], count: int, path: Path, *, seed: int) -> tuple[TokenRow, ...]:
    """One row out of each of `count` equal parts of the rows sorted by length, shortest first."""
    if len(rows) < count:
        raise DataError(
            f"{path}: {len(rows)} usable rows, but {count} are asked for; give more rows or lower"
            f" calibration.rows or calibration.heldout_rows"
        )
    generator = random.Random(seed)
    ranked = sorted(rows, key=lambda row: (len(row.token_ids), row.where))
    bounds = [index * len(ranked) // count for index in range(count + 1)]
    return tuple(ranked[generator.randrange(low, high)] for low, high in pairwise(bounds))


def _fitting(rows: list[TokenRow], config: CalibrationConfig) -> tuple[list[TokenRow], int]:
    long = [row for row in rows if len(row.token_ids) > config.max_tokens]
    if long and not config.skip_long:
        raise DataError(
            f"{long[0].where}: has {len(long[0].token_ids)} tokens, calibration.max_tokens is"
            f" {config.max_tokens} ({len(long)} such rows); raise it or set calibration.skip_long"
        )
    return [row for row in rows if 2 <= len(row.token_ids) <= config.max_tokens], len(long)


def _refuse_shared(rows: Sequence[TokenRow], heldout: Sequence[TokenRow], config: CalibrationConfig) -> None:
    measured = {row.question: row.where for row in heldout}
    shared = [row for row in rows if row.question in measured]
    if shared:
        raise DataError(
            f"{shared[0].where} asks what {measured[shared[0].question]} asks ({len(shared)} such rows):"
            f" calibrating on {config.heldout} would flatter the result; take them out (`decant split`)"
        )


def _read(path: Path, tokenizer: Any, config: CalibrationConfig) -> list[TokenRow]:
    if path.suffix in _TEXT_SUFFIXES:
        return _windows(path, tokenizer, config.max_tokens)
    return [_token_row(path, row, tokenizer) for row in read_good_rows(path)]


def _windows(path: Path, tokenizer: Any, length: int) -> list[TokenRow]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    # verbose=False: a text longer than the context is what is wanted here.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    parts = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    return [
        TokenRow(tuple(part), 1, _digest(str(part)), f"{path}:window {number}")
        for number, part in enumerate(parts, start=1)
    ]


def _token_row(path: Path, row: Row, tokenizer: Any) -> TokenRow:
    where = f"{path}:{row.line}"
    if isinstance(row.fields.get("text"), str):
        text = row.fields["text"]
        ids = tokenizer(text)["input_ids"]
        return TokenRow(tuple(ids), 1, _digest(text), where)
    asked, answered = _messages(row.fields, where)
    if tokenizer.chat_template is None:
        raise DataError(
            f"{where}: is a chat, but the model has no chat template; give rows with a text field"
        )
    prompt = _rendered(tokenizer, asked, where=where, opens_answer=True)
    prompt_ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not answered:
        return TokenRow(tuple(prompt_ids), 1, _digest(_asked_text(asked)), where)
    whole = _rendered(tokenizer, [*asked, *answered], where=where, opens_answer=False)
    whole_ids: list[int] = tokenizer(whole, add_special_tokens=False)["input_ids"]
    is_prefix = whole_ids[: len(prompt_ids)] == prompt_ids and len(whole_ids) > len(prompt_ids)
    return TokenRow(tuple(whole_ids), len(prompt_ids) if is_prefix else 1, _digest(_asked_text(asked)), where)


def _messages(fields: dict[str, Any], where: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """What was asked and what was answered, as chat messages."""
    if isinstance(fields.get("messages"), list):
        messages = _chat(fields["messages"], "user", where)
        ends = messages[-1:] if messages and messages[-1]["role"] == "assistant" else []
        return messages[: len(messages) - len(ends)], ends
    if "prompt" in fields:
        return _chat(fields["prompt"], "user", where), _chat(
            fields.get("completion") or [], "assistant", where
        )
    raise DataError(f"{where}: has none of the fields messages, prompt and text; name the dataset's own so")


def _chat(value: Any, role: str, where: str) -> list[dict[str, str]]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    items = cast("list[Any]", value) if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, dict) or not {"role", "content"} <= set(cast("dict[str, Any]", item)):
            raise DataError(
                f"{where}: a message must have a role and a content (got {str(cast('Any', item))[:60]})"
            )
    return cast("list[dict[str, str]]", items)


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, where: str, opens_answer: bool) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens_answer)
    except TemplateError as error:
        raise DataError(f"{where}: the model's chat template refuses it ({error}); mend the row") from None


def _asked_text(messages: list[dict[str, str]]) -> str:
    return "\n".join(f"{message['role']} {message['content']}" for message in messages)


def _digest(text: str) -> str:
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()
