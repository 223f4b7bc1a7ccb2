"""What each verifier says of an answer, and what is refused before anything is spent."""

from typing import Any

import pytest

from decant.errors import ConfigError, StageError
from decant.json_schema import check_schema, problems
from decant_distill.verifiers import Statement, Verdict, Verifier, VerifierConfig, load_verifiers, verdicts


def check(
    kind: str, answer: str, *, gold: str | None = None, reasoning: str = "", **options: Any
) -> bool | None:
    verifiers = load_verifiers([VerifierConfig(kind=kind, options=options)])
    statement = Statement(question="?", reasoning=reasoning, answer=answer, gold=gold)
    return verdicts(verifiers, statement)[kind].passed


def broken() -> Verifier:
    def verify(statement: Statement) -> Verdict:
        raise KeyError(statement.answer)

    return verify


def test_exact_is_equal_but_for_case_and_space() -> None:
    assert check("exact", " Seven.", gold="seven") is True
    assert check("exact", "8", gold="7") is False
    assert check("exact", "8") is None


@pytest.mark.parametrize(
    ("answer", "gold", "passed"),
    [
        ("1,234.50 km", "1234.5", True),
        ("-3", "−3", True),
        ("3/4", "0.75", True),
        ("12 %", "0.12", True),
        ("$5", "5.00", True),
        ("0.3333333", "1/3", True),
        ("0.33", "1/3", False),
        ("2 or 3", "2", False),
        ("none", "2", False),
        ("2", "two", None),
    ],
)
def test_numbers_are_compared_whatever_their_spelling(answer: str, gold: str, passed: bool | None) -> None:
    assert check("numeric", answer, gold=gold) is passed


@pytest.mark.parametrize(
    ("reasoning", "passed"),
    [
        ("3 + 4 * 2 = 11, so we are done.", True),
        ("(3 + 4) * 2 = 14", True),
        ("1,200 / 7 = 171.43", True),
        ("1,200 / 7 = 171.45", False),
        ("10 × 3 − 5 = 25 and 7 ÷ 2 = 3", False),
        ("20% * 50 = 10", True),
        ("2 + 3 = 5 + 1 = 6", True),
        ("12 - -3 = 15.", True),
        ("So x = 5 and y = 7.", None),
        ("7 / 0 = 0", None),
        ("x * 3 + 4 = 19", None),
        (" + ".join(["1"] * 40) + " = 40", None),
        ("3 apples plus 4 apples is 8 apples", None),
    ],
)
def test_sums_are_computed_again(reasoning: str, passed: bool | None) -> None:
    assert check("arithmetic", "done", reasoning=reasoning) is passed


def test_a_long_text_is_read_in_linear_time() -> None:
    assert check("arithmetic", "x", reasoning="(" * 20_000 + "1 + " * 20_000 + " " * 20_000) is None


def test_a_regex_must_match_the_whole_answer() -> None:
    assert check("regex", "B", pattern="[A-D]") is True
    assert check("regex", "B or C", pattern="[A-D]") is False


def test_json_answers_are_held_to_their_schema() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"]}
    assert check("json_schema", '{"n": 3}', schema=schema) is True
    assert check("json_schema", '{"n": -3}', schema=schema) is False
    assert check("json_schema", "{n: 3}", schema=schema) is False


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, 3.0, True),
        ({"enum": ["a", 1]}, 1, True),
        ({"const": None}, None, 0),
        ({"type": ["string", "null"]}, None, 1),
        ({"items": {"type": "string"}, "minItems": 1, "uniqueItems": True}, ["a"], ["a", "a"]),
        ({"properties": {"a": {}}, "additionalProperties": False}, {"a": 1}, {"b": 1}),
        ({"additionalProperties": {"type": "number"}}, {"b": 1}, {"b": "1"}),
        ({"pattern": "^a", "maxLength": 2}, "ab", "abc"),
        ({"anyOf": [{"type": "string"}, {"maximum": 3}]}, 2, 4),
        ({"oneOf": [{"minimum": 1}, {"maximum": 3}]}, 4, 2),
        ({"allOf": [{"minimum": 1}, {"exclusiveMaximum": 3}]}, 2, 3),
        ({"items": {"format": "date"}}, ["2026-01-31"], ["31.1."]),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "number"}}}, 1, "1"),
    ],
)
def test_the_keywords_of_a_schema_hold(schema: dict[str, Any], good: Any, bad: Any) -> None:
    check_schema(schema)
    assert not list(problems(good, schema))
    assert list(problems(bad, schema))


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/x"},
        {"$ref": "https://example.com/x"},
        {"properties": {"a": {"$ref": "#/x"}}},
        {"type": "text"},
        {"pattern": "("},
        [],
    ],
)
def test_a_schema_that_could_not_be_checked_is_refused(schema: Any) -> None:
    with pytest.raises(ConfigError):
        check_schema(schema)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("exct", {}, "did you mean exact"),
        ("regex", {"patern": "a"}, "patern"),
        ("regex", {"pattern": "("}, "unterminated"),
        ("no_such_module:check", {}, "no_such_module"),
        ("decant_distill.verifiers:nothing", {}, "has no nothing"),
    ],
)
def test_a_verifier_that_is_none_is_refused_by_name(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_verifiers([VerifierConfig(kind=kind, options=options)])


def test_a_plug_in_is_found_by_module_and_name_and_blamed_when_it_breaks() -> None:
    own = VerifierConfig(kind=f"{__name__}:broken", name="mine")
    with pytest.raises(StageError, match="the verifier mine broke on the answer 'x'"):
        verdicts(load_verifiers([own]), Statement(question="?", reasoning=None, answer="x", gold=None))
