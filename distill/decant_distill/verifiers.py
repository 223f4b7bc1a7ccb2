"""Verifiers: checks of an answer that ask nobody; plug-ins, by name or by `module:factory`."""

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import Field

from decant.config import Config, nearest
from decant.errors import ConfigError, StageError
from decant.json_schema import check_schema, problems
from decant.task import same_answer
from decant_distill.arithmetic import number_in, wrong_equation


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What is verified: the question, what the teacher said, and the true answer where it is known."""

    question: str
    reasoning: str | None
    answer: str
    gold: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the check passed, None where it does not apply, and why it did not pass."""

    passed: bool | None
    why: str = ""


Verifier = Callable[[Statement], Verdict]


class VerifierConfig(Config):
    """One check of every answer."""

    kind: str = Field(
        description="exact, numeric, regex, json_schema, arithmetic, or module:factory of your own"
    )
    name: str | None = Field(default=None, description="its name in the labels; the kind when left out")
    options: dict[str, Any] = Field(default={}, description="arguments of the verifier")

    @property
    def label(self) -> str:
        """What it is called in the labels."""
        return self.name or self.kind


def load_verifiers(configs: Sequence[VerifierConfig]) -> dict[str, Verifier]:
    """The verifiers by name; ConfigError for one that does not exist or does not take its options."""
    verifiers: dict[str, Verifier] = {}
    for config in configs:
        if config.label in verifiers:
            raise ConfigError(f"verify: two checks are named {config.label}; give one another name")
        try:
            verifiers[config.label] = _factory(config.kind)(**config.options)
        except TypeError as error:
            raise ConfigError(f"verify: {config.label}: options: {error}") from None
    return verifiers


def verdicts(verifiers: Mapping[str, Verifier], statement: Statement) -> dict[str, Verdict]:
    """What each verifier says; StageError with its name for one that breaks."""
    found: dict[str, Verdict] = {}
    for name, verify in verifiers.items():
        try:
            found[name] = verify(statement)
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            shown = statement.answer[:80]
            raise StageError(
                f"the verifier {name} broke on the answer {shown!r}: {words}; mend it"
            ) from error
    return found


def exact() -> Verifier:
    """Equal to gold but for case, white space and a closing full stop."""

    def verify(statement: Statement) -> Verdict:
        if statement.gold is None:
            return Verdict(None)
        is_right = same_answer(statement.answer, statement.gold)
        return Verdict(is_right, "" if is_right else f"gold is {statement.gold!r}")

    return verify


def numeric(*, relative: float = 1e-6, absolute: float = 0.0) -> Verifier:
    """The same number as gold, whatever its spelling (`1,234.50`, `$3/4`, `12 %`), within a tolerance."""

    def verify(statement: Statement) -> Verdict:
        if statement.gold is None or (wanted := number_in(statement.gold)) is None:
            return Verdict(None)
        if (given := number_in(statement.answer)) is None:
            return Verdict(False, "not one number")
        is_right = abs(given - wanted) <= max(absolute, relative * abs(wanted))
        return Verdict(is_right, "" if is_right else f"gold is {statement.gold}")

    return verify


def regex(*, pattern: str) -> Verifier:
    """The whole answer matches a regular expression."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"verify: regex: {pattern!r}: {error}") from None

    def verify(statement: Statement) -> Verdict:
        matches = compiled.fullmatch(statement.answer) is not None
        return Verdict(matches, "" if matches else f"does not match {pattern}")

    return verify


def json_schema(*, schema: Mapping[str, Any]) -> Verifier:
    """The answer is JSON that fits a schema."""
    check_schema(schema, "verify: schema")

    def verify(statement: Statement) -> Verdict:
        try:
            value = json.loads(statement.answer)
        except (ValueError, RecursionError) as error:
            return Verdict(False, f"not JSON ({error})")
        wrong = next(problems(value, schema), None)
        return Verdict(wrong is None, wrong or "")

    return verify


def arithmetic() -> Verifier:
    """Every sum that the reasoning writes out (`3 + 4 * 2 = 11`) is right when it is computed again."""

    def verify(statement: Statement) -> Verdict:
        count, wrong = wrong_equation("\n".join([statement.reasoning or "", statement.answer]))
        if count == 0:
            return Verdict(None)
        return Verdict(wrong is None, wrong or "")

    return verify


VERIFIERS = {
    "exact": "decant_distill.verifiers:exact",
    "numeric": "decant_distill.verifiers:numeric",
    "regex": "decant_distill.verifiers:regex",
    "json_schema": "decant_distill.verifiers:json_schema",
    "arithmetic": "decant_distill.verifiers:arithmetic",
}


def _factory(kind: str) -> Callable[..., Verifier]:
    module, separator, name = VERIFIERS.get(kind, kind).partition(":")
    if not separator:
        raise ConfigError(f"verify: unknown verifier {kind}{nearest(kind, list(VERIFIERS))}")
    try:
        factory = vars(importlib.import_module(module))[name]
    except ImportError as error:
        raise ConfigError(f"verify: {kind}: {error}; is it on PYTHONPATH?") from None
    except KeyError:
        raise ConfigError(f"verify: {kind}: {module} has no {name}") from None
    if not callable(factory):
        raise ConfigError(f"verify: {kind}: not a factory; give a function that returns the check")
    return cast(Callable[..., Verifier], factory)
