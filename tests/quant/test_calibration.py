"""Which rows a model is calibrated and measured on."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from decant.errors import DataError, QuantizeError
from decant_quant.methods.calibration import ChosenRows, choose_rows
from decant_quant.options import CalibrationConfig


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    """Questions of growing length."""
    return [{"prompt": f"Q{i} " + "and on " * i, "completion": f"A{i}"} for i in range(start, start + count)]


def choose(model: Path, dataset: Path, **settings: Any) -> ChosenRows:
    values = {"rows": 8, "heldout_rows": 4, "max_tokens": 512, **settings}
    return choose_rows(model, CalibrationConfig.model_validate({"dataset": dataset, **values}), context=512)


def test_rows_go_through_the_chat_template_and_know_where_their_answer_starts(
    model_folder: Path, tmp_path: Path
) -> None:
    row = choose(model_folder, write(tmp_path / "d.jsonl", asked(12))).calibration[0]
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model_folder)
    text = tokenizer.decode(row.token_ids)
    assert text.startswith("<|user|>Q")
    assert tokenizer.decode(row.token_ids[row.answer_start :]).startswith("A")
    assert tokenizer.decode(row.token_ids[: row.answer_start]).endswith("<|assistant|>")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "completion": "So."},
        {
            "prompt": [{"role": "user", "content": "Why?"}],
            "completion": [{"role": "assistant", "content": "So."}],
        },
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
    ],
)
def test_every_form_of_a_chat_is_the_same_row(
    model_folder: Path, tmp_path: Path, row: dict[str, Any]
) -> None:
    rows = choose(model_folder, write(tmp_path / "d.jsonl", [row, *asked(1)]), rows=1, heldout_rows=1)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model_folder)
    texts = [tokenizer.decode(r.token_ids) for r in (*rows.calibration, *rows.heldout)]
    assert "<|user|>Why?<|end|>\n<|assistant|>So.<|end|>\n" in texts


def test_the_same_seed_chooses_the_same_rows_and_another_does_not(model_folder: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", asked(60))
    first = choose(model_folder, data, seed=1)
    assert choose(model_folder, data, seed=1) == first
    assert choose(model_folder, data, seed=2).digest != first.digest


def test_short_and_long_rows_come_in_proportion(model_folder: Path, tmp_path: Path) -> None:
    chosen = choose(model_folder, write(tmp_path / "d.jsonl", asked(60)), rows=12, heldout_rows=12)
    for rows in (chosen.calibration, chosen.heldout):
        numbers = sorted(int(row.where.rpartition(":")[2]) for row in rows)
        # One row, give or take, out of every twelfth of the lengths.
        assert [abs(number - (i + 0.5) * 5) < 6 for i, number in enumerate(numbers)] == [True] * 12


def test_no_question_is_calibrated_and_measured_on(model_folder: Path, tmp_path: Path) -> None:
    twice = [*asked(12), *({**row, "completion": "other"} for row in asked(12))]
    chosen = choose(model_folder, write(tmp_path / "d.jsonl", twice))
    questions = [{row.question for row in rows} for rows in (chosen.calibration, chosen.heldout)]
    assert not questions[0] & questions[1]


def test_a_question_that_is_also_in_the_held_out_file_is_refused(model_folder: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", asked(12))
    leak = {"prompt": "  q3 AND on and on and on", "completion": "whatever"}
    heldout = write(tmp_path / "eval.jsonl", [*asked(6, start=50), leak])
    with pytest.raises(DataError, match=r"d\.jsonl:4 asks what .*eval\.jsonl:7 asks"):
        choose(model_folder, data, heldout=heldout)
    chosen = choose(model_folder, data, heldout=write(tmp_path / "eval.jsonl", asked(6, start=50)))
    assert all("eval.jsonl" in row.where for row in chosen.heldout)


def test_too_few_rows_are_refused(model_folder: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", asked(11))
    with pytest.raises(DataError, match=r"11 different questions .* are 12"):
        choose(model_folder, data)
    with pytest.raises(DataError, match=r"d\.jsonl: 11 usable rows, but 20 are asked for"):
        choose(model_folder, data, rows=20, heldout=write(tmp_path / "e.jsonl", asked(6, start=50)))


def test_rows_that_are_too_long_are_refused_or_left_out_and_counted(
    model_folder: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "d.jsonl", [*asked(20), {"prompt": "x " * 300, "completion": "y"}])
    with pytest.raises(DataError, match=r"d\.jsonl:21: has \d+ tokens, calibration\.max_tokens is 200"):
        choose(model_folder, data, max_tokens=200)
    assert choose(model_folder, data, max_tokens=200, skip_long=True).left_out == 1
    with pytest.raises(QuantizeError, match=r"max_tokens is 600, .* context of 512"):
        choose(model_folder, data, max_tokens=600)


def test_a_text_file_is_cut_into_windows(model_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text(" ".join(f"line {i} of the book" for i in range(200)))
    chosen = choose(model_folder, text, max_tokens=32)
    assert {len(row.token_ids) for row in (*chosen.calibration, *chosen.heldout)} == {32}
    text.write_text("short")
    with pytest.raises(DataError, match="0 different questions"):
        choose(model_folder, text, max_tokens=32)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "?"}, "has none of the fields messages, prompt and text"),
        ({"messages": [{"role": "user"}]}, "must have a role and a content"),
    ],
)
def test_a_row_that_is_no_chat_and_no_text_is_named(
    model_folder: Path, tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=rf"d\.jsonl:13: .*{said}"):
        choose(model_folder, write(tmp_path / "d.jsonl", [*asked(12), row]))


def test_chats_need_a_chat_template(tmp_path: Path, tiny: Any) -> None:
    tiny.save(tmp_path / "model", "Llama", tiny.tokenizer(template=None))
    with pytest.raises(DataError, match="no chat template; give rows with a text field"):
        choose(tmp_path / "model", write(tmp_path / "d.jsonl", asked(12)))
    texts = [{"text": f"line {i}"} for i in range(12)]
    assert choose(tmp_path / "model", write(tmp_path / "d.jsonl", texts)).calibration[0].answer_start == 1
