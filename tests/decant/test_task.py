"""From a row to a request, and from a response to reasoning and answer."""

import pytest

from decant.config import load_config
from decant.errors import ConfigError, DataError
from decant.task import TaskConfig, compose, parse_response, same_answer


def test_a_row_becomes_messages() -> None:
    task = TaskConfig(prompt="Section of: {text}", system="Be brief.")
    assert task.messages({"text": "a {brace}"}) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Section of: a {brace}"},
    ]


@pytest.mark.parametrize("fields", [{}, {"text": None}])
def test_a_row_without_the_field_is_refused_by_name(fields: dict[str, str | None]) -> None:
    with pytest.raises(DataError, match="lacks the field text"):
        TaskConfig(prompt="{text}").messages(fields)


@pytest.mark.parametrize("prompt", ["no field", "{}", "{a.b}", "{a[0]}"])
def test_a_prompt_that_names_no_field_is_refused(prompt: str) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        load_config(TaskConfig, values={"prompt": prompt})


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("7 plus 5 is 2.\nAnswer: 2", "7 plus 5 is 2.", "2"),
        ("Answer: 2", None, "2"),
        ("Answer: 2\n7 plus 5 is 2.", "7 plus 5 is 2.", "2"),
        ("<think>maybe Answer: 9</think>Answer: 2", "maybe Answer: 9", "2"),
        ("Answer: 3? No.\nAnswer: 2\n", "Answer: 3? No.", "2"),
        ("no idea", "no idea", None),
        ("Answer:", None, None),
        ("Answer:   \n", None, None),
        ("", None, None),
    ],
)
def test_reasoning_and_answer_are_told_apart(text: str, reasoning: str | None, answer: str | None) -> None:
    parsed = parse_response(text, marker="Answer:")
    assert (parsed.reasoning, parsed.answer) == (reasoning, answer)


@pytest.mark.parametrize("placement", ["answer_only", "rationale_then_answer", "answer_then_rationale"])
def test_what_is_composed_parses_back(placement: str) -> None:
    text = compose("Two and two.", "4", marker="Answer:", placement=placement)  # type: ignore[arg-type]
    parsed = parse_response(text, marker="Answer:")
    assert parsed.answer == "4"
    assert parsed.reasoning == (None if placement == "answer_only" else "Two and two.")


def test_answers_are_compared_by_meaning_of_case_and_space() -> None:
    assert same_answer(" Gnu-R.", "gnu-r")
    assert not same_answer("1", "10")
