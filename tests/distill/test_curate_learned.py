"""The rules that look at all labels together: language, a learned quality, perplexity, diversity."""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decant.errors import ConfigError, DataError, MissingExtraError
from decant.reviews import Review, add_review
from decant.store import RequestStore
from decant_distill.curate_diversity import project, select
from decant_distill.curate_language import known_language
from decant_distill.curate_perplexity import WordModel
from decant_distill.minhash import Shingler
from tests.distill.test_curate import curate, dropped, label

WORDS = [f"{a}{b}" for a in ("ba", "de", "ki", "lo", "mu") for b in ("ra", "ne", "so", "ti", "pu")]


def sentence(generator: random.Random, words: list[str] = WORDS, length: int = 12) -> str:
    return " ".join(generator.choice(words) for _ in range(length))


def languages(folder: Path, **text: str) -> list[str]:
    pytest.importorskip("py3langid")
    rows = [label(name, 0, "4", reasoning=words) for name, words in text.items()]
    kept, _ = curate(folder, rows, text={"languages": ["en"]})
    return [row["id"] for row in kept]


def test_other_languages_go_and_what_is_no_language_stays(tmp_path: Path) -> None:
    kept = languages(
        tmp_path,
        english="The section is libs, because the synopsis names a shared library.",
        german="Der Abschnitt ist libs, denn die Beschreibung nennt eine gemeinsame Bibliothek.",
        chinese="这个软件包是一个共享库，所以它属于库部分。",
        sums="7 + 5 = 12; 12 - 3 = 9",
        code="`std::vector<int> v; for (auto x : v) { y += x; }`",
        word="Oui.",
    )
    assert kept == ["english", "sums", "code", "word"]


def test_an_unknown_language_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    with pytest.raises(ConfigError, match="english: give two-letter codes"):
        curate(tmp_path, [label("a", 0, "4")], text={"languages": ["english"]})


@pytest.mark.parametrize(
    ("changes", "module", "package"),
    [
        ({"text": {"languages": ["en"]}}, "py3langid.langid", "py3langid"),
        ({"keep": "verified", "min_quality": 0.5}, "sklearn.linear_model", "scikit-learn"),
    ],
)
def test_a_missing_library_is_an_error_that_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], module: str, package: str
) -> None:
    known_language.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed; .*decant\[curate\]"):
        curate(tmp_path, mixed(), **changes)


def mixed(count: int = 200) -> list[dict[str, Any]]:
    """Sound rationales are right and shoddy ones wrong; the last ten shoddy ones happen to be right."""
    generator = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        is_shoddy = number % 2 == 0
        words = sentence(generator) + (" whatever i guess" if is_shoddy else " hence it follows")
        is_right = not is_shoddy or number >= count - 20
        rows.append(label(f"p{number}", 0, "4" if is_right else "5", reasoning=words, gold="4"))
    return rows


def test_what_looks_like_the_rejected_is_dropped_too(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    kept, report = curate(tmp_path, mixed(), keep="verified", min_quality=0.5)
    assert dropped(report) == {"verified": 90, "quality": 10}
    assert all("hence" in row["reasoning"] for row in kept)
    again, _ = curate(tmp_path, mixed(), keep="verified", min_quality=0.5)
    assert again == kept


def test_no_label_is_judged_by_a_model_that_saw_its_prompt(tmp_path: Path) -> None:
    """Each prompt has a word of its own: a model that had seen it would know every answer by heart."""
    pytest.importorskip("sklearn")
    rows = [
        label(f"own{number} " * 30, 0, "4" if number % 2 else "5", reasoning="so", gold="4")
        for number in range(400)
    ]
    kept, report = curate(tmp_path, rows, keep="verified", min_quality=0.5)
    assert 40 < dropped(report).get("quality", 0) < 160
    assert len(kept) + dropped(report)["quality"] == 200


def test_too_little_to_learn_from_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(DataError, match="found 2 accepted and 0 rejected"):
        curate(tmp_path, [label("a", 0, "4"), label("b", 0, "4")], min_quality=0.5)


def test_what_a_person_accepted_passes_every_learned_rule(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    rows = mixed()
    with RequestStore.open(tmp_path / "labels.store.sqlite") as requests:
        accepted = Review(of="p198-0", version=1, decision="accept")
        add_review(requests, accepted, row_id="p198", sample=0, asked=[])
    kept, _ = curate(tmp_path, rows, keep="verified", min_quality=0.5, max_perplexity_percentile=50.0)
    assert "p198" in [row["id"] for row in kept]


def test_the_oddest_and_the_most_commonplace_texts_go(tmp_path: Path) -> None:
    generator = random.Random(1)
    rows = [label(f"p{number}", 0, "4", reasoning=sentence(generator)) for number in range(196)]
    rows += [label(f"odd{n}", 0, "4", reasoning=f"zq{n} xv{n} jj{n} wk{n} qq{n}") for n in range(4)]
    kept, report = curate(tmp_path, rows, max_perplexity_percentile=98.0)
    assert dropped(report) == {"perplexity": 4}
    assert not [row for row in kept if row["id"].startswith("odd")]
    dull = [label(f"dull{n}", 0, "4", reasoning="ba ba ba ba ba ba ba ba") for n in range(4)]
    _, report = curate(tmp_path, rows[:196] + dull, min_perplexity_percentile=2.0)
    assert {example["id"] for example in report["rules"][4]["examples"]} <= {f"dull{n}" for n in range(4)}


def test_a_model_of_words_knows_what_follows_what() -> None:
    hashes = Shingler(1).hashes
    model = WordModel([hashes("the cat sat on the mat") for _ in range(50)])
    seen, shuffled, new = (
        model.perplexity(hashes(text)) for text in ("the cat sat", "sat the cat", "un du tri")
    )
    assert seen < shuffled < new
    assert model.perplexity(hashes("", whole=False)) == 1.0


def test_a_percentile_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs 100 labels and 1 are left"):
        curate(tmp_path, [label("a", 0, "4")], max_perplexity_percentile=99.0)


def test_few_prompts_that_reach_everywhere_are_kept(tmp_path: Path) -> None:
    generator = random.Random(2)
    topics = [[f"t{topic}w{word}" for word in range(8)] for topic in range(5)]
    prompts = [f"{sentence(generator, topics[min(n // 10, 4)])} n{n}" for n in range(300)]
    rows = [label(prompt, sample, "4") for prompt in prompts for sample in range(2)]
    kept, report = curate(tmp_path, rows, diverse=10)
    assert len(kept) == 20
    assert dropped(report) == {"diversity": 580}
    assert {row["id"][:2] for row in kept} == {f"t{topic}" for topic in range(5)}
    again, _ = curate(tmp_path, rows, diverse=10)
    assert again == kept


def test_centers_reach_further_than_chance_in_every_block() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((3000, 64)).astype(np.float32)
    vectors[:2900] = vectors[0] + 0.05 * vectors[:2900]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def radius(rows: list[int]) -> float:
        return float(1 - (vectors @ vectors[rows].T).max(axis=1).min())

    chosen = select(vectors, 150, seed=0)
    assert (len(chosen), len(set(chosen))) == (150, 150)
    assert chosen == select(vectors, 150, seed=0)
    assert radius(chosen) < 0.85 * radius(sorted(generator.choice(3000, 150, replace=False).tolist()))


def test_texts_that_share_rare_words_are_near() -> None:
    hashes = Shingler(1).hashes
    texts = ["the red fox runs", "the red fox sleeps", "a blue ship sails"]
    vectors = project([np.unique(hashes(text)) for text in texts], seed=0)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
