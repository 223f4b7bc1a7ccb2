"""The task: how a dataset row becomes a request, and how reasoning and answer come out of a response."""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from decant.config import Config, OptionalInputPath
from decant.errors import DataError
from decant.template import PromptTemplate, ShippedTemplate, load_template

Placement = Literal["answer_only", "rationale_then_answer", "answer_then_rationale"]
Message = dict[str, str]

_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)


class TaskConfig(Config):
    """Which fields of a row matter and how a response is read."""

    prompt: str = Field(default="{prompt}", description="user message, str.format over the row's fields")
    template: ShippedTemplate | None = Field(
        default=None, description="shipped Jinja template for the user message, instead of `prompt`"
    )
    template_file: OptionalInputPath = Field(
        default=None, description="Jinja template of your own for the user message, instead of `prompt`"
    )
    values: dict[str, Any] = Field(
        default={}, description="values for the template; a row's field of the same name wins"
    )
    system: str | None = Field(default=None, description="system message")
    id_field: str = Field(
        default="id", description="field with the row's id; the line number when a row has none"
    )
    gold_field: str = Field(default="gold", description="field with the true answer, where there is one")
    length_field: str = Field(
        default="length", description="field to break results down by, where there is one"
    )
    group_field: str = Field(default="group", description="field with the row's group, where there is one")
    answer_marker: str = Field(default="Answer:", description="what stands before the answer in a response")
    max_tokens: int = Field(default=256, ge=1, description="longest response, in tokens")

    @field_validator("prompt")
    @classmethod
    def _is_a_format_string(cls, value: str) -> str:
        names = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
        if not names or any(not re.fullmatch(r"\w+", name) for name in names):
            raise ValueError("must name the row's fields like {text}; write literal braces as {{ }}")
        return value

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        given = {"template", "template_file"} & {name for name, value in self if value is not None}
        if len(given) > 1 or (given and self.prompt != "{prompt}"):
            raise ValueError("set one of prompt, template and template_file")
        if self.values and not given:
            raise ValueError("values are for a template; set template or template_file")
        return self

    def prompt_template(self) -> PromptTemplate | None:
        """The Jinja template, where the task has one; ConfigError when it cannot be used."""
        if self.template is None and self.template_file is None:
            return None
        return load_template(self.template, self.template_file)

    def prompt_fields(self) -> list[str]:
        """The row fields that the prompt needs."""
        if (template := self.prompt_template()) is not None:
            known = {"answer_marker", *self.values}
            return [name for name in template.fields if name not in known]
        return list(_format_fields(self.prompt))

    def user_text(self, fields: Mapping[str, Any]) -> str:
        """The user message for one row; DataError when the row lacks a field of the prompt."""
        missing = [name for name in self.prompt_fields() if fields.get(name) is None]
        if missing:
            raise DataError(f"the row lacks the field {', '.join(missing)} that the prompt names")
        if (template := self.prompt_template()) is not None:
            return template.render({"answer_marker": self.answer_marker, **self.values, **fields})
        return self.prompt.format(**fields)

    def messages(self, fields: Mapping[str, Any]) -> list[Message]:
        """The chat messages for one row; DataError when the row lacks a field of the prompt."""
        user_text = self.user_text(fields)
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, {"role": "user", "content": user_text}]

    def row_id(self, fields: Mapping[str, Any], line: int) -> str:
        """The row's own id as text, else `line-N`."""
        value = fields.get(self.id_field)
        return f"line-{line}" if value is None else str(value)

    def gold(self, fields: Mapping[str, Any]) -> str | None:
        """The row's true answer as text, where it has one."""
        value = fields.get(self.gold_field)
        return None if value is None else str(value)


@lru_cache(maxsize=16)
def _format_fields(prompt: str) -> tuple[str, ...]:
    return tuple(name for _, name, _, _ in string.Formatter().parse(prompt) if name)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A response split into its reasoning and its answer; None where it has none."""

    reasoning: str | None
    answer: str | None


def split_thoughts(text: str) -> tuple[list[str], str]:
    """The `<think>` blocks of a response, and the rest of it."""
    return [thought.strip() for thought in _THINK.findall(text)], _THINK.sub("", text)


def parse_response(text: str, *, marker: str) -> Parsed:
    """Splits a response at the answer marker: the answer is the rest of that line, the reasoning all else.

    `<think>` blocks count as reasoning, and a marker inside them is not the answer. Of several markers the
    last one counts, so that a rationale which quotes it does no harm.
    """
    thoughts, visible = split_thoughts(text)
    before, found, after = visible.rpartition(marker)
    if not found:
        return Parsed(reasoning=_join([*thoughts, visible]), answer=None)
    answer, _, rest = after.strip().partition("\n") if after.strip() else ("", "", "")
    return Parsed(reasoning=_join([*thoughts, before, rest]), answer=answer.strip() or None)


def compose(reasoning: str | None, answer: str, *, marker: str, placement: Placement) -> str:
    """The completion that a student is taught, with the rationale placed before, after or not at all."""
    line = f"{marker} {answer}"
    if placement == "answer_only" or not reasoning:
        return line
    return f"{reasoning}\n{line}" if placement == "rationale_then_answer" else f"{line}\n{reasoning}"


def same_answer(left: str, right: str) -> bool:
    """Whether two answers are equal but for case, white space and a closing full stop."""
    return normal_answer(left) == normal_answer(right)


def normal_answer(answer: str) -> str:
    """The spelling that equal answers share."""
    return " ".join(answer.split()).rstrip(".").casefold()


def _join(parts: list[str]) -> str | None:
    return "\n".join(part.strip() for part in parts if part.strip()) or None
