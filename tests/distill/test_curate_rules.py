"""`decant curate`: thresholds, texts, near-duplicates, balance, privacy, contamination and the split."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from decant.config import load_config
from decant.errors import ConfigError, DataError
from decant_distill.curate import CurateConfig
from decant_distill.curate_split import Member, held_out
from decant_distill.minhash import MinHasher, similarity
from tests.distill.test_curate import curate, dropped, label, votes, write

WORDS = [f"word{i}" for i in range(3000)]


def text(seed: int, count: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def test_thresholds_on_votes_drop_what_is_less_sure(tmp_path: Path) -> None:
    rows = votes("sure", "7", "7", "7") + votes("half", "7", "7", "3")
    kept, report = curate(tmp_path, rows, min_vote_share=0.6)
    assert Counter(row["id"] for row in kept) == {"sure": 3, "half": 2}
    assert dropped(report) == {"vote_share": 1}
    kept, report = curate(tmp_path, rows, min_confidence=0.9)
    assert Counter(row["id"] for row in kept) == {"sure": 3}
    assert dropped(report) == {"confidence": 3}


@pytest.mark.parametrize(("checks", "kept"), [("ignore", "abcd"), ("no_failure", "acd"), ("all_passed", "a")])
def test_what_verifiers_rejected_goes_when_asked(tmp_path: Path, checks: str, kept: str) -> None:
    found: dict[str, Any] = {"a": {"exact": True}, "b": {"exact": False}, "c": {"exact": None}, "d": None}
    rows = [label(name, 0, "1", checks=one) for name, one in found.items()]
    left, _ = curate(tmp_path, rows, checks=checks)
    assert "".join(row["id"] for row in left) == kept


@pytest.mark.parametrize(
    ("setting", "bad"),
    [
        ({"min_words": 3}, {"reasoning": "no"}),
        ({"max_words": 10}, {"reasoning": text(1)}),
        ({"min_reasoning_words": 2}, {"reasoning": "hm"}),
        ({"max_repeated_lines": 0.5}, {"reasoning": "again\n" * 9}),
        ({"max_repeated_ngrams": 0.5}, {"reasoning": "and so on we go " * 9}),
        ({"drop_refusals": True}, {"reasoning": "I\u2019m sorry, but I can\u2019t help with that."}),
        ({"drop_residue": True}, {"reasoning": "Dear [Your Name], hello"}),
        ({"drop_keywords": ["cheap"]}, {"reasoning": "So CHEAP!"}),
        ({"require_keywords": ["two"]}, {"reasoning": "so many words"}),
    ],
)
def test_each_rule_on_texts_has_its_name_and_an_example(
    tmp_path: Path, setting: dict[str, Any], bad: dict[str, str]
) -> None:
    rows = [label("good", 0, "4", reasoning="two and two is four"), label("bad", 0, "4", **bad)]
    kept, report = curate(tmp_path, rows, text=setting)
    assert [row["id"] for row in kept] == ["good"]
    (name,) = setting
    assert dropped(report) == {name: 1}
    (rule,) = [rule for rule in report["rules"] if rule["name"] == name]
    assert rule["examples"][0]["id"] == "bad"
    assert rule["examples"][0]["reason"]


def test_the_instruct_preset_keeps_short_code_and_arithmetic_answers(tmp_path: Path) -> None:
    texts = ["", "7 + 5 = 12", "def f(x): return {x: [1, 2]}", "- a\n- b\n- c", "I can't say more than: 4."]
    rows = [label(f"p{i}", 0, "12", reasoning=one) for i, one in enumerate(texts)]
    kept, report = curate(tmp_path, rows, text={"preset": "instruct"})
    assert len(kept) == len(texts)
    assert dropped(report) == {}


def test_a_preset_that_would_destroy_instruction_data_stops_and_says_which_rule(tmp_path: Path) -> None:
    rows = [label(f"p{i}", 0, "12", reasoning="7 + 5 = 12") for i in range(10)]
    rows.append(label("page", 0, "It is done.", reasoning=f"The end of that is to be with you. {text(1)}."))
    with pytest.raises(DataError, match=r"the preset web would drop 10 of 11 labels \(min_words 10\)"):
        curate(tmp_path, rows, text={"preset": "web"})
    assert not (tmp_path / "train.jsonl").exists()
    assert dropped(json.loads((tmp_path / "curation.json").read_text())) == {"min_words": 10}
    kept, _ = curate(tmp_path, rows, text={"preset": "web", "max_preset_share": 1.0})
    assert [row["id"] for row in kept] == ["page"]


def test_nearly_equal_prompts_go_and_all_rationales_of_the_first_stay(tmp_path: Path) -> None:
    near = f"{text(1)} again"
    rows = votes(text(1), "7", "7") + votes(near, "7") + votes(text(2), "7") + votes(near.upper(), "8")
    kept, report = curate(tmp_path, rows, near_duplicates=0.8)
    assert [row["id"] for row in kept] == [text(1), text(1), text(2)]
    assert dropped(report) == {"near_duplicate": 2}
    assert "that of line 1" in report["rules"][-1]["examples"][0]["reason"]


@pytest.mark.parametrize("changed", [0, 3, 10, 40])
def test_signatures_estimate_the_similarity_of_texts(changed: int) -> None:
    hasher, before = MinHasher(), text(3, 200).split()
    after = [f"new{i}" if i < changed else word for i, word in enumerate(before)]
    left, right = ({tuple(words[i : i + 3]) for i in range(198)} for words in (before, after))
    true = len(left & right) / len(left | right)
    found = similarity(hasher.signature(" ".join(before)), hasher.signature(" ".join(after)))
    assert found == pytest.approx(true, abs=0.15)


def test_overlap_with_the_evaluation_set_is_found_inside_other_text(tmp_path: Path) -> None:
    held_out_prompt = text(5, 20)
    held = write(tmp_path / "test.jsonl", [{"prompt": held_out_prompt}, {"prompt": text(6)}])
    rows = [
        *votes(f"{text(8)} {held_out_prompt} and be brief", "1"),
        *votes(f"{text(6)} please", "1"),
        *votes(text(7), "1"),
    ]
    changes = {"decontaminate": held, "decontaminate_ngram": 13, "decontaminate_similarity": 0.8}
    kept, report = curate(tmp_path, rows, **changes)
    assert [row["id"] for row in kept] == [text(7)]
    assert dropped(report) == {"decontamination_overlap": 2}
    kept, _ = curate(tmp_path, rows, decontaminate=held, decontaminate_similarity=0.8)
    assert len(kept) == 2


def test_overlap_without_a_set_to_compare_with_is_refused() -> None:
    with pytest.raises(ConfigError, match="need decontaminate"):
        load_config(CurateConfig, values={"labels": "l", "output": "o", "decontaminate_ngram": 13})


def test_no_answer_has_more_than_its_multiple_of_the_median(tmp_path: Path) -> None:
    rows = [label(f"p{i}", 0, "common" if i < 20 else "rare" if i < 23 else "scarce") for i in range(25)]
    kept, report = curate(tmp_path, rows, balance=2.0)
    assert Counter(row["answer"] for row in kept) == {"common": 6, "rare": 3, "scarce": 2}
    again, _ = curate(tmp_path, rows, balance=2.0)
    other, _ = curate(tmp_path, rows, balance=2.0, seed=1)
    assert again == kept
    assert other != kept
    assert dropped(report) == {"balance": 14}


def test_private_things_become_placeholders_in_all_of_a_row(tmp_path: Path) -> None:
    rows = votes("Mail ann@x.org and bob@x.org", "bob@x.org", reasoning="bob@x.org was last")
    (row,), report = curate(tmp_path, rows, redact=["email"])
    assert row["prompt"][0]["content"] == "Mail [EMAIL_1] and [EMAIL_2]"
    assert row["completion"][0]["content"] == "[EMAIL_2] was last\nAnswer: [EMAIL_2]"
    assert report["redacted"] == {"email": 4}


def test_a_share_is_held_out_and_no_group_stands_on_both_sides(tmp_path: Path) -> None:
    rows = [label(f"p{i}", 0, "yes" if i % 4 else "no", group=f"g{i // 4}") for i in range(80)]
    validation = tmp_path / "validation.jsonl"
    changes = {"validation": validation, "validation_share": 0.25, "split_by": "group"}
    train, report = curate(tmp_path, rows, **changes)
    apart = [json.loads(line) for line in validation.read_text().splitlines()]
    assert report["split"] == {"train": 60, "validation": 20}
    assert not {row["group"] for row in train} & {row["group"] for row in apart}
    assert Counter(row["answer"] for row in apart) == {"yes": 15, "no": 5}


def test_a_split_is_stratified_and_follows_from_names_and_seed() -> None:
    members = [Member(i, f"g{i}", "rare" if i < 20 else "common") for i in range(200)]
    chosen = held_out(members, share=0.1, seed=0)
    assert (len(chosen), sum(line < 20 for line in chosen)) == (20, 2)
    assert held_out(reversed(members), share=0.1, seed=0) == chosen
    assert held_out(members, share=0.1, seed=1) != chosen
