"""How a model writes its answers, and how they are told from the reasoning: marker, tag or JSON schema."""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

from pydantic import Field, model_validator

from decant.config import Config
from decant.json_schema import check_schema, problems
from decant.task import TaskConfig, parse_response, split_thoughts

AnswerForm = Literal["marker", "tag", "json"]

# Error classes of answers that came and cannot be used; the others name what kept an answer from coming.
CUT = "length"
NO_ANSWER = "no_answer"
BAD_JSON = "bad_json"
SCHEMA = "schema"
UNUSABLE = (CUT, NO_ANSWER, BAD_JSON, SCHEMA)

_FENCE = re.compile(r"\A\s*```\w*\n(.*)\n```\s*\Z", re.DOTALL)


class AnswersConfig(Config):
    """Where the answer stands in a response; all else is reasoning."""

    form: AnswerForm = Field(
        default="marker",
        description="behind the task's answer_marker, in a tag, or in a constrained JSON object",
    )
    tag: str = Field(default="answer", pattern=r"^\w+$", description="for `tag`: what the answer stands in")
    answer_schema: dict[str, Any] = Field(
        default={"type": "string"}, description="for `json`: the JSON schema of the answer alone"
    )

    @model_validator(mode="after")
    def _can_be_checked(self) -> Self:
        check_schema(self.answer_schema, "answer_schema")
        return self

    def request_fields(self) -> dict[str, Any]:
        """What a request needs so that its answer has this form; reasoning comes before the answer."""
        if self.form != "json":
            return {}
        schema = {
            "type": "object",
            "properties": {"reasoning": {"type": "string"}, "answer": self.answer_schema},
            "required": ["reasoning", "answer"],
            "additionalProperties": False,
        }
        named = {"name": "label", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": named}}


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer says, and why it is no label if it is none."""

    reasoning: str | None
    answer: str | None
    error_class: str | None = None
    error: str | None = None


def whole_response(text: str, reasoning: str | None) -> str:
    """One text for an answer whose reasoning came in a field of its own: it stands in front as `<think>`."""
    return f"<think>{reasoning}</think>{text}" if reasoning else text


def read_response(
    response: str, finish_reason: str | None, task: TaskConfig, answers: AnswersConfig | None = None
) -> Reading:
    """Splits an answer. One that did not end by itself is no label, whatever it says: it may lack its end."""
    reading = read_text(response, task, answers or AnswersConfig())
    if finish_reason == CUT:
        error = f"finish_reason=length: cut at max_tokens = {task.max_tokens}"
        return Reading(reading.reasoning, None, CUT, error)
    if finish_reason != "stop":
        ended = finish_reason or "unfinished"
        return Reading(reading.reasoning, None, ended, f"finish_reason={finish_reason}: no whole answer")
    return reading


def read_text(response: str, task: TaskConfig, answers: AnswersConfig) -> Reading:
    """Splits what a response says, however it ended."""
    if answers.form == "tag":
        return _read_tag(response, answers.tag)
    if answers.form == "json":
        return _read_json(response, answers.answer_schema)
    parsed = parse_response(response, marker=task.answer_marker)
    if parsed.answer is None:
        return Reading(parsed.reasoning, None, NO_ANSWER, f"no {task.answer_marker!r} in the answer")
    return Reading(parsed.reasoning, parsed.answer)


def _read_tag(response: str, tag: str) -> Reading:
    thoughts, visible = split_thoughts(response)
    # The last one counts: a rationale may quote the tag.
    before, opening, rest = visible.rpartition(f"<{tag}>")
    answer, closing, after = rest.partition(f"</{tag}>")
    if not opening or not closing or not answer.strip():
        return Reading(_joined(*thoughts, visible), None, NO_ANSWER, f"no <{tag}>…</{tag}> in the answer")
    return Reading(_joined(*thoughts, _bare(before), _bare(after)), answer.strip())


def _bare(text: str) -> str:
    """Text without the tags that its author put around it."""
    return re.sub(r"</?(?:reasoning|rationale|thinking|analysis)>", "", text)


def _read_json(response: str, answer_schema: dict[str, Any]) -> Reading:
    thoughts, visible = split_thoughts(response)
    fenced = _FENCE.match(visible)
    try:
        whole = json.loads(fenced[1] if fenced else visible)
    except (ValueError, RecursionError) as error:
        return Reading(_joined(*thoughts, visible), None, BAD_JSON, f"not JSON ({error})")
    if not isinstance(whole, dict) or "answer" not in whole:
        return Reading(_joined(*thoughts), None, SCHEMA, "not a JSON object with an `answer`")
    fields = cast(dict[str, Any], whole)
    reasoning, answer = fields.get("reasoning"), fields["answer"]
    said = _joined(*thoughts, reasoning if isinstance(reasoning, str) else "")
    if wrong := next(problems(answer, answer_schema), None):
        return Reading(said, None, SCHEMA, wrong)
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, sort_keys=True)
    if not text.strip():
        return Reading(said, None, NO_ANSWER, "the answer is empty")
    return Reading(said, text.strip())


def _joined(*parts: str) -> str | None:
    return "\n".join(part.strip() for part in parts if part.strip()) or None
