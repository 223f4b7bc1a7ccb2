"""The curate stage: from labels to a training set; `curation.json` says what each rule dropped, and why."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from decant.dataset import BadRow, read_rows
from decant.errors import DataError
from decant.files import write_json, write_jsonl, write_text
from decant_distill.curate_account import account_of, dropped_lines
from decant_distill.curate_config import CurateConfig
from decant_distill.curate_contamination import Contamination
from decant_distill.curate_diversity import diversity_rule
from decant_distill.curate_output import Layout, write_rows
from decant_distill.curate_page import curation_page
from decant_distill.curate_perplexity import perplexity_rule
from decant_distill.curate_quality import quality_rule
from decant_distill.curate_rules import (
    Candidate,
    Dropped,
    Rule,
    apply_rules,
    balance_rule,
    calibrated_rule,
    cap_rule,
    checks_rule,
    confidence_rule,
    decontamination_rule,
    duplicate_rule,
    flag_rule,
    near_duplicate_rule,
    review_rule,
    share_rule,
    usable_rules,
    verified_rule,
    vote_rule,
)
from decant_distill.curate_survey import Survey, Surveyor, near_duplicates, question_digest
from decant_distill.curate_text import TextRule, text_rules
from decant_distill.curate_texts import Texts
from decant_distill.redact import Redaction
from decant_distill.reviewed import read_decisions

CONFIG = CurateConfig


def run(config: CurateConfig) -> None:
    """Writes the training set and the report; DataError when no label is left, or a preset takes too many."""
    evaluation = _evaluation_prompts(config)
    on_text = text_rules(config.text)
    surveyor = Surveyor(
        on_text,
        _contamination(config, evaluation[0]),
        with_signatures=config.near_duplicates is not None,
        reviews=read_decisions(config.labels, config.reviews),
    )
    survey = surveyor.survey(config.labels)
    dropped: Dropped = {}
    rules = _rules(config, survey, evaluation[0], on_text, dropped=dropped)
    apply_rules(list(survey.candidates.values()), rules, dropped=dropped)
    lost = {line for lines in dropped.values() for line in lines}
    kept = [line for line in survey.candidates if line not in lost]
    accounts = account_of(config.labels, rules, dropped, survey)
    report = _report(config, survey, kept, evaluation)
    described = {"rules": [account.to_report() for account in accounts]}
    write_json(config.report_path, {**report, **described})
    write_text(config.page_path, curation_page(report, accounts))
    write_jsonl(config.dropped_path, dropped_lines(dropped))
    summary = ", ".join(f"{account.name} {account.dropped}" for account in accounts if account.dropped)
    if not kept:
        dropped_by = f"dropped by rule: {summary}" if summary else "the file is empty"
        raise DataError(f"{config.labels}: no label is left ({dropped_by}); see {config.report_path}")
    counts = {name: len(lines) for name, lines in dropped.items()}
    _refuse_a_preset_that_destroys(config, on_text, counts, kept)
    written = write_rows(_layout(config), survey, kept)
    write_json(config.report_path, {**report, **written.to_report(), **described})
    where = f"{config.output}" + (f" and {config.validation}" if config.validation is not None else "")
    print(f"kept {len(kept)} of {report['rows_in']} labels, {report['prompts_out']} prompts -> {where}")
    print(f"dropped: {summary or 'none'}; look through them in {config.page_path}")


def _layout(config: CurateConfig) -> Layout:
    return Layout(
        labels=config.labels,
        output=config.output,
        validation=config.validation,
        validation_share=config.validation_share,
        by_group=config.split_by == "group",
        seed=config.seed,
        redact=Redaction.of(config.redact, config.names),
        answer_marker=config.task.answer_marker,
    )


def _report(
    config: CurateConfig, survey: Survey, kept: Sequence[int], evaluation: tuple[list[str], int]
) -> dict[str, Any]:
    decontamination = None
    if config.decontaminate is not None:
        decontamination = {
            "data": str(config.decontaminate),
            "prompts": len({question_digest(prompt) for prompt in evaluation[0]}),
            "bad_rows": evaluation[1],
        }
    return {
        "labels": str(config.labels),
        "output": str(config.output),
        "keep": config.keep,
        "rows_in": len(survey.candidates) + len(survey.unreadable),
        "rows_out": len(kept),
        "prompts_in": len(survey.tallies),
        "prompts_out": len({survey.candidates[line].prompt for line in kept}),
        "right": _right(survey, kept),
        "reviews": dict(Counter(review.decision for review in survey.reviews.values())),
        "decontamination": decontamination,
    }


def _refuse_a_preset_that_destroys(
    config: CurateConfig, on_text: Sequence[TextRule], dropped: dict[str, int], kept: Sequence[int]
) -> None:
    """A preset is a judgement made on other data: when it takes much, somebody has to look at it."""
    by_preset = {rule.name: dropped[rule.name] for rule in on_text if rule.is_preset}
    taken = sum(by_preset.values())
    seen = taken + len(kept) + sum(dropped.get(name, 0) for name in ("duplicate", "near_duplicate", "cap"))
    if taken > config.text.max_preset_share * seen:
        worst = max(by_preset, key=lambda name: by_preset[name])
        raise DataError(
            f"the preset {config.text.preset} would drop {taken} of {seen} labels "
            f"({worst} {by_preset[worst]}); see {config.report_path}, then choose another preset, "
            "set its rules by name, or raise text.max_preset_share"
        )


def _rules(
    config: CurateConfig,
    survey: Survey,
    evaluation: Sequence[str],
    on_text: Sequence[TextRule],
    *,
    dropped: Dropped,
) -> list[Rule]:
    rules = usable_rules()
    if survey.reviews:
        rules.append(review_rule())
    if config.decontaminate is not None:
        rules.append(decontamination_rule(frozenset(question_digest(prompt) for prompt in evaluation)))
    if config.decontaminate_ngram is not None or config.decontaminate_similarity is not None:
        rules.append(flag_rule(Contamination.RULE, "the prompt overlaps with the evaluation set"))
    if config.keep == "majority":
        rules.append(vote_rule(survey.tallies, min_votes=config.min_votes))
    if config.keep == "verified":
        rules.append(verified_rule())
    if config.min_vote_share is not None:
        rules.append(share_rule(survey.tallies, least=config.min_vote_share))
    if config.min_confidence is not None:
        rules.append(confidence_rule(survey.tallies, least=config.min_confidence))
    if config.min_calibrated is not None:
        rules.append(calibrated_rule(least=config.min_calibrated))
    if config.checks != "ignore":
        rules.append(checks_rule(all_passed=config.checks == "all_passed"))
    rules += [flag_rule(rule.name, rule.what, judges=True) for rule in on_text]
    return [*rules, *_learned_rules(config, survey, dropped), *_last_rules(config, survey)]


def _learned_rules(config: CurateConfig, survey: Survey, dropped: Dropped) -> Iterator[Rule]:
    """Those that learn from the labels themselves, and so come after the ones that need no learning."""
    texts = Texts(config.labels, survey)
    if config.min_quality is not None:
        candidates = list(survey.candidates.values())
        yield quality_rule(texts, candidates, dropped, least=config.min_quality, seed=config.seed)
    low, high = config.min_perplexity_percentile, config.max_perplexity_percentile
    if low is not None or high is not None:
        yield perplexity_rule(texts, highest=high, lowest=low, seed=config.seed)


def _last_rules(config: CurateConfig, survey: Survey) -> list[Rule]:
    """Those that compare labels with each other, and so come after those that drop bad ones."""
    rules = [duplicate_rule()]
    if (threshold := config.near_duplicates) is not None:
        rules.append(
            near_duplicate_rule(lambda left: near_duplicates(left, survey.signatures, threshold=threshold))
        )
    if config.diverse is not None:
        texts = Texts(config.labels, survey)
        rules.append(diversity_rule(texts, prompts=config.diverse, seed=config.seed))
    if config.max_per_prompt is not None:
        rules.append(cap_rule(config.max_per_prompt))
    if config.balance is not None:

        def drawn(candidate: Candidate) -> bytes:
            return hashlib.blake2b(f"{config.seed}\0{candidate.key}".encode(), digest_size=8).digest()

        rules.append(balance_rule(config.balance, order=drawn))
    return rules


def _evaluation_prompts(config: CurateConfig) -> tuple[list[str], int]:
    """The prompts of the evaluation set, and how many of its rows give none."""
    if config.decontaminate is None:
        return [], 0
    prompts: list[str] = []
    bad_rows = 0
    for row in read_rows(config.decontaminate, required=config.task.prompt_fields()):
        try:
            messages = config.task.messages(row.fields) if not isinstance(row, BadRow) else None
        except DataError:
            messages = None
        if messages is None:
            bad_rows += 1
        else:
            prompts.append(messages[-1]["content"])
    if not prompts:
        raise DataError(
            f"{config.decontaminate}: no row gives a prompt to decontaminate against; check task.prompt"
        )
    return prompts, bad_rows


def _contamination(config: CurateConfig, prompts: Sequence[str]) -> Contamination | None:
    ngram, similarity = config.decontaminate_ngram, config.decontaminate_similarity
    if ngram is None and similarity is None:
        return None
    return Contamination(prompts, ngram=ngram, similarity=similarity)


def _right(survey: Survey, kept: Sequence[int]) -> dict[str, int]:
    """How many answers equal gold, among those that have any: of all usable labels, and of those kept."""
    before = [one.is_right for one in survey.candidates.values() if one.is_right is not None]
    after = [survey.candidates[line].is_right for line in kept]
    return {
        "answers_with_gold": len(before),
        "right": sum(before),
        "kept_with_gold": sum(right is not None for right in after),
        "kept_right": sum(right is True for right in after),
    }
