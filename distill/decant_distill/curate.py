"""The curate stage: from labels to a training set; `curation.json` says what each rule dropped, and why."""

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from decant.config import Config, InputPath, OptionalInputPath, OptionalOutputPath, OutputPath
from decant.dataset import BadRow, read_rows
from decant.errors import DataError
from decant.files import write_json, write_jsonl
from decant.task import TaskConfig, compose, same_answer
from decant.wire import canonical_json
from decant_distill.curate_rules import (
    Candidate,
    Keep,
    Rule,
    Tally,
    apply_rules,
    cap_rule,
    decontamination_rule,
    duplicate_rule,
    tally_votes,
    usable_rules,
    verified_rule,
    vote_rule,
)
from decant_distill.labels import Label, read_labels

_MOST_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 400
_UNREADABLE = "unreadable"


class CurateConfig(Config):
    """Which labels become training rows."""

    labels: InputPath = Field(description="label file that `decant label` wrote")
    output: OutputPath = Field(description="training set to write (JSONL)")
    report: OptionalOutputPath = Field(
        default=None, description="report; curation.json beside the output when left out"
    )
    keep: Keep = Field(
        default="all", description="all answers, those the samples agree on, or those that equal gold"
    )
    min_votes: int = Field(default=2, ge=1, description="fewest equal answers for `keep = majority`")
    max_per_prompt: int | None = Field(
        default=None, ge=1, description="most labels kept for one prompt; first come"
    )
    decontaminate: OptionalInputPath = Field(
        default=None, description="evaluation dataset whose prompts are dropped"
    )
    task: TaskConfig = Field(
        default=TaskConfig(), description="how a row of the evaluation dataset becomes a prompt"
    )


CONFIG = CurateConfig


@dataclass(frozen=True, slots=True)
class _Survey:
    """The label file after one reading: what the rules need, and the lines that hold no label."""

    candidates: dict[int, Candidate]
    unreadable: dict[int, BadRow]
    tallies: dict[bytes, Tally]


def run(config: CurateConfig) -> None:
    """Writes the training set and the report; DataError when no label is left."""
    survey = _survey(config.labels)
    rules, decontamination = _rules(config, survey)
    dropped = apply_rules(list(survey.candidates.values()), rules)
    lost = {line for lines in dropped.values() for line in lines}
    kept = [line for line in survey.candidates if line not in lost]
    described = _describe_rules(config, rules, dropped, survey)
    report = {
        "labels": str(config.labels),
        "output": str(config.output),
        "keep": config.keep,
        "rows_in": len(survey.candidates) + len(survey.unreadable),
        "rows_out": len(kept),
        "prompts_in": len(survey.tallies),
        "prompts_out": len({survey.candidates[line].prompt for line in kept}),
        "right": _right(survey, kept),
        "decontamination": decontamination,
        "rules": described,
    }
    report_path = config.report or config.output.with_name("curation.json")
    write_json(report_path, report)
    summary = ", ".join(f"{rule['name']} {rule['dropped']}" for rule in described if rule["dropped"])
    if not kept:
        dropped_by = f"dropped by rule: {summary}" if summary else "the file is empty"
        raise DataError(f"{config.labels}: no label is left ({dropped_by}); see {report_path}")
    write_jsonl(config.output, _training_rows(config, survey, frozenset(kept)))
    print(
        f"kept {len(kept)} of {report['rows_in']} labels, {report['prompts_out']} prompts -> {config.output}"
    )
    print(f"dropped: {summary or 'none'}; examples in {report_path}")


def _survey(labels: Path) -> _Survey:
    candidates: dict[int, Candidate] = {}
    unreadable: dict[int, BadRow] = {}
    spellings: dict[bytes, list[str]] = {}
    for line, label in read_labels(labels):
        if isinstance(label, BadRow):
            unreadable[line] = label
        else:
            candidates[line] = _candidate(line, label, spellings)
    return _Survey(candidates, unreadable, tally_votes(candidates.values()))


def _candidate(line: int, label: Label, spellings: dict[bytes, list[str]]) -> Candidate:
    prompt = _digest(canonical_json(label.prompt)) if label.prompt is not None else None
    answer = label.answer if label.status == "done" else None
    is_right = None
    if answer is not None and label.gold is not None:
        is_right = same_answer(answer, label.gold)
    if answer is not None and prompt is not None:
        known = spellings.setdefault(prompt, [])
        answer = next((spelling for spelling in known if same_answer(spelling, answer)), answer)
        if answer not in known:
            known.append(answer)
    return Candidate(
        line=line,
        key=label.key,
        prompt=prompt,
        question=question_digest(label.question),
        completion=_digest(canonical_json([label.reasoning, label.answer])),
        answer=answer,
        is_right=is_right,
        error_class=None if label.status == "done" else label.error_class or "unknown",
        error=label.error,
    )


def question_digest(text: str) -> bytes:
    """A digest that is equal for prompts that differ only in case, white space or Unicode form.

    Punctuation counts: `7 + 5` and `7 - 5` are two prompts.
    """
    return _digest(
        " ".join(unicodedata.normalize("NFKC", text).casefold().split()).encode("utf-8", "surrogatepass")
    )


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _rules(config: CurateConfig, survey: _Survey) -> tuple[list[Rule], dict[str, Any] | None]:
    rules = usable_rules()
    decontamination = None
    if config.decontaminate is not None:
        questions, bad_rows = _evaluation_questions(config.decontaminate, config.task)
        decontamination = {"data": str(config.decontaminate), "prompts": len(questions), "bad_rows": bad_rows}
        rules.append(decontamination_rule(questions))
    if config.keep == "majority":
        rules.append(vote_rule(survey.tallies, min_votes=config.min_votes))
    if config.keep == "verified":
        rules.append(verified_rule())
    rules.append(duplicate_rule())
    if config.max_per_prompt is not None:
        rules.append(cap_rule(config.max_per_prompt))
    return rules, decontamination


def _evaluation_questions(path: Path, task: TaskConfig) -> tuple[frozenset[bytes], int]:
    """The digests of an evaluation set's prompts, and how many of its rows give none."""
    questions: set[bytes] = set()
    bad_rows = 0
    for row in read_rows(path, required=task.prompt_fields()):
        try:
            messages = task.messages(row.fields) if not isinstance(row, BadRow) else None
        except DataError:
            messages = None
        if messages is None:
            bad_rows += 1
        else:
            questions.add(question_digest(messages[-1]["content"]))
    if not questions:
        raise DataError(f"{path}: no row gives a prompt to decontaminate against; check task.prompt")
    return frozenset(questions), bad_rows


def _right(survey: _Survey, kept: Sequence[int]) -> dict[str, int]:
    """How many answers equal gold, among those that have any: of all usable labels, and of those kept."""
    before = [one.is_right for one in survey.candidates.values() if one.is_right is not None]
    after = [survey.candidates[line].is_right for line in kept]
    return {
        "answers_with_gold": len(before),
        "right": sum(before),
        "kept_with_gold": sum(right is not None for right in after),
        "kept_right": sum(right is True for right in after),
    }


def _describe_rules(
    config: CurateConfig, rules: Sequence[Rule], dropped: Mapping[str, Mapping[int, str]], survey: _Survey
) -> list[dict[str, Any]]:
    examples: dict[str, list[dict[str, Any]]] = {rule.name: [] for rule in rules}
    wanted = {line: name for name, lines in dropped.items() for line in list(lines)[:_MOST_EXAMPLES]}
    last = max(wanted, default=0)
    for line, label in read_labels(config.labels):
        if line > last:
            break
        if line in wanted and isinstance(label, Label):
            examples[wanted[line]].append(_example(line, label, dropped[wanted[line]][line]))
    described = [
        {
            "name": rule.name,
            "what": rule.what,
            "dropped": len(dropped[rule.name]),
            "examples": examples[rule.name],
        }
        for rule in rules
    ]
    bad = list(survey.unreadable.values())
    bad_examples = [
        {"line": row.line, "reason": row.reason, "text": row.text} for row in bad[:_MOST_EXAMPLES]
    ]
    unreadable = {
        "name": _UNREADABLE,
        "what": "the line holds no label",
        "dropped": len(bad),
        "examples": bad_examples,
    }
    return [unreadable, *described]


def _example(line: int, label: Label, reason: str) -> dict[str, Any]:
    return {
        "line": line,
        "id": label.id,
        "sample": label.sample,
        "reason": reason,
        "prompt": label.question[:_EXAMPLE_CHARACTERS],
        "response": (label.response or "")[-_EXAMPLE_CHARACTERS:],
        "gold": label.gold,
    }


def _training_rows(config: CurateConfig, survey: _Survey, kept: frozenset[int]) -> Iterator[dict[str, Any]]:
    for line, label in read_labels(config.labels):
        if line in kept and isinstance(label, Label):
            yield _training_row(config, label, survey.candidates[line], survey.tallies)


def _training_row(
    config: CurateConfig, label: Label, candidate: Candidate, tallies: Mapping[bytes, Tally]
) -> dict[str, Any]:
    assert candidate.prompt is not None
    assert candidate.answer is not None
    assert label.answer is not None
    tally = tallies[candidate.prompt]
    content = compose(
        label.reasoning, label.answer, marker=config.task.answer_marker, placement="rationale_then_answer"
    )
    optional = {"group": label.group, "length": label.length}
    return {
        "id": label.id,
        "sample": label.sample,
        "prompt": label.prompt,
        "completion": [{"role": "assistant", "content": content}],
        "reasoning": label.reasoning,
        "answer": label.answer,
        "label_key": label.key,
        "votes": tally.votes[candidate.answer],
        "vote_share": tally.share(candidate.answer),
        **{name: value for name, value in optional.items() if value is not None},
    }
