"""The parity guard names the kind of break, and lets near-ties pass."""

from typing import Any

import pytest

from decant.errors import ParityError
from decant.golden import TOLERANCES, GoldenPrompt, GoldenSet, Observation, compare

PROMPT = GoldenPrompt(
    messages=({"role": "user", "content": "hi"},),
    rendered="<u>hi<a>",
    prompt_ids=(1, 5, 2),
    token_ids=(7, 8, 9),
    logprobs=(-0.1, -0.2, -0.1),
    margins=(3.0, 0.1, 3.0, 5.0),
    finish="stop",
)
GOLDEN = GoldenSet(stage="train", eos_id=4, max_tokens=8, prompts=(PROMPT,))


def observe(**changes: Any) -> Observation:
    fields = {name: value for name, value in dict(PROMPT).items() if name not in ("messages", "margins")}
    return Observation(**{**fields, **changes})


def kinds(observation: Observation, precision: str = "bf16") -> list[str]:
    report = compare(GOLDEN, [observation], stage="merge", tolerance=TOLERANCES[precision])
    return [item.kind for item in report.breaks]


def test_the_same_answer_is_no_break() -> None:
    report = compare(GOLDEN, [observe()], stage="merge", tolerance=TOLERANCES["exact"])
    assert report.ok
    assert (report.checked, report.flips, report.max_logprob_gap) == (1, 0, 0.0)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"rendered": "hi", "prompt_ids": (5,)}, "template"),
        ({"prompt_ids": (1, 6, 2)}, "tokenizer"),
        ({"rendered": None, "prompt_ids": (1, 6, 2)}, "tokenizer"),
        ({"token_ids": (7, 8, 9, 4, 7), "logprobs": (-0.1, -0.2, -0.1, 0.0, 0.0)}, "eos"),
        ({"finish": "length"}, "eos"),
        ({"token_ids": (3, 3, 3), "logprobs": (-1.0, -1.0, -1.0)}, "weights"),
        ({"logprobs": (-0.1, -0.2, -2.1)}, "weights"),
        ({"logprobs": (-0.2, -0.3, -0.2)}, "weights"),
    ],
)
def test_each_kind_of_break_is_named(changes: dict[str, Any], kind: str) -> None:
    assert kinds(observe(**changes)) == [kind]


def test_another_token_in_a_near_tie_is_a_flip_but_no_break() -> None:
    observation = observe(token_ids=(7, 6, 6), logprobs=(-0.1, -0.25, -0.3))
    report = compare(GOLDEN, [observation], stage="merge", tolerance=TOLERANCES["bf16"])
    assert report.ok
    assert report.flips == 1
    assert kinds(observation, "exact") == ["weights"]


def test_a_model_that_shares_no_first_token_is_broken_however_near_the_ties_were() -> None:
    unsure = PROMPT.model_copy(update={"margins": (0.01, 0.01, 0.01, 0.01)})
    golden = GOLDEN.model_copy(update={"prompts": (unsure, unsure)})
    other = observe(token_ids=(1, 2, 3), logprobs=(-5.0, -5.0, -5.0))
    report = compare(golden, [other, other], stage="merge", tolerance=TOLERANCES["q4"])
    assert [item.kind for item in report.breaks] == ["weights"]
    assert compare(golden, [other, observe()], stage="merge", tolerance=TOLERANCES["q4"]).ok


def test_the_error_names_stage_kind_and_remedy() -> None:
    report = compare(GOLDEN, [observe(finish="length")], stage="served", tolerance=TOLERANCES["q8"])
    with pytest.raises(ParityError, match="stage served: eos broken on 1 of 1 golden prompts"):
        report.raise_if_broken()


def test_a_golden_prompt_must_hold_a_margin_for_its_end() -> None:
    with pytest.raises(ValueError, match="end token"):
        GoldenPrompt.model_validate({**dict(PROMPT), "margins": (3.0, 0.1, 3.0)})
