"""From a row to a request, and from a response to reasoning and answer."""

from pathlib import Path

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


def test_a_shipped_template_renders_the_row_and_the_constants() -> None:
    task = TaskConfig(template="classify", values={"labels": ["spam", "ham"]})
    assert task.prompt_fields() == ["text"]
    (message,) = task.messages({"text": "Buy {{ 7 * 6 }} now"})
    assert "- spam\n- ham\n" in message["content"]
    assert "Buy {{ 7 * 6 }} now" in message["content"]
    assert message["content"].endswith("Answer: and the label, spelled as in the list.")


@pytest.mark.parametrize("fields", [{"question": "Why?"}, {"question": "Why?", "context": "Because."}])
def test_a_field_that_the_template_asks_after_may_be_absent(fields: dict[str, str]) -> None:
    content = TaskConfig(template="answer").messages(fields)[0]["content"]
    assert ("Rely on the context" in content) == ("context" in fields)


def test_a_row_wins_over_the_constants_and_a_missing_field_is_named(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ tone }}: {{ text }}")
    task = TaskConfig(template_file=file, values={"tone": "calm"})
    assert task.messages({"text": "a", "tone": "loud"})[0]["content"] == "loud: a"
    with pytest.raises(DataError, match="lacks the field text"):
        task.messages({"tone": "loud"})


@pytest.mark.parametrize("text", ["{{ text.__class__.__mro__ }}", "{{ text / 0 }}", "{{ [].append(text) }}"])
def test_what_a_template_may_not_do_is_a_row_that_fails(text: str, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(text)
    with pytest.raises(DataError, match="template own"):
        TaskConfig(template_file=tmp_path / "own.jinja").messages({"text": "x"})


def test_a_broken_template_is_one_line_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("fine\n{% if %}")
    with pytest.raises(ConfigError, match=r"own\.jinja:2: not a template"):
        TaskConfig(template_file=tmp_path / "own.jinja").prompt_fields()


@pytest.mark.parametrize(
    "values", [{"template": "classify", "prompt": "{x}"}, {"values": {"a": 1}}, {"template": "poem"}]
)
def test_prompts_that_contradict_each_other_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        load_config(TaskConfig, values=values)


def test_a_changed_template_has_another_version(tmp_path: Path) -> None:
    versions: set[str] = set()
    for text in ("{{ text }}", "{{ text }}!"):
        file = tmp_path / f"{len(text)}.jinja"
        file.write_text(text)
        template = TaskConfig(template_file=file).prompt_template()
        assert template is not None
        versions.add(template.version)
    assert len(versions) == 2
