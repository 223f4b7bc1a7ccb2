import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decant.config import validate
from decant.errors import DataError
from decant_bench.bench_config import LengthConfig, WorkloadConfig
from decant_bench.tokens import WordCounter, token_counter
from decant_bench.traces import TraceRequest
from decant_bench.workload import Conversation, Workload, draw_length

DEMO_MODEL = Path(__file__).parents[2] / "distill/decant_distill/demo/weights/student-base"


def workload(seed: int = 0, **settings: Any) -> Workload:
    config = validate(WorkloadConfig, settings, where="test")
    return Workload(config, counter=token_counter(config.tokenizer), seed=seed)


def prompts(conversations: list[Conversation]) -> list[str]:
    return [turn.content for conversation in conversations for turn in conversation.turns]


def test_the_same_seed_gives_the_same_prompts_and_a_longer_run_begins_like_a_shorter_one() -> None:
    lengths = {"kind": "lognormal", "mean": 40, "std": 20}
    first = list(workload(prompt_tokens=lengths).measured(20))

    assert list(workload(prompt_tokens=lengths).measured(30))[:20] == first
    assert prompts(list(workload(seed=1, prompt_tokens=lengths).measured(20))) != prompts(first)


@pytest.mark.parametrize("kind", ["normal", "lognormal"])
def test_lengths_have_the_mean_and_spread_that_were_asked_for(kind: Any) -> None:
    rng, config = np.random.default_rng(0), LengthConfig(kind=kind, mean=200, std=40, low=1)
    drawn = [draw_length(config, rng) for _ in range(5000)]

    assert np.mean(drawn) == pytest.approx(200, rel=0.02)
    assert np.std(drawn) == pytest.approx(40, rel=0.05)


def test_lengths_stay_within_their_bounds() -> None:
    rng, config = np.random.default_rng(0), LengthConfig(kind="normal", mean=10, std=50, low=5, high=12)
    assert {draw_length(config, rng) for _ in range(500)} <= set(range(5, 13))


def test_without_a_tokenizer_lengths_are_exact_in_words() -> None:
    conversations = list(workload(prompt_tokens={"mean": 37}).measured(5))
    assert [WordCounter().count(prompt) for prompt in prompts(conversations)] == [37] * 5


def test_with_a_tokenizer_lengths_are_exact_in_tokens() -> None:
    pytest.importorskip("tokenizers")
    lengths = {"kind": "normal", "mean": 60, "std": 20}
    conversations = list(workload(tokenizer=DEMO_MODEL, prompt_tokens=lengths).measured(20))
    counter = token_counter(DEMO_MODEL)

    asked = [conversation.turns[0].prompt_tokens for conversation in conversations]
    assert [counter.count(prompt) for prompt in prompts(conversations)] == asked
    assert len(set(asked)) > 5


def test_warm_up_prompts_and_beginnings_are_none_of_the_measured_ones() -> None:
    load = workload(prompt_tokens={"mean": 1}, prefix_tokens=20, prefix_groups=2)
    measured = list(load.measured(40))
    warmup = load.warmup(20, measured)

    heads = [
        {conversation.head[0]["content"] for conversation in conversations}
        for conversations in (measured, warmup)
    ]
    assert [len(head) for head in heads] == [2, 2]
    assert not heads[0] & heads[1]


def test_a_workload_too_small_to_be_warmed_up_with_others_says_so(tmp_path: Path) -> None:
    one_word = workload(prompt_tokens={"mean": 1})
    with pytest.raises(DataError, match="make the prompts longer"):
        one_word.warmup(200, list(one_word.measured(2000)))


def test_a_shared_beginning_is_the_system_message_of_a_chat_and_the_start_of_a_completion() -> None:
    conversation = next(workload(prefix_tokens=8, prompt_tokens={"mean": 4}).measured(1))
    chat, text = conversation.body(0, [], route="chat"), conversation.body(0, [], route="completions")

    assert [message["role"] for message in chat["messages"]] == ["system", "user"]
    assert text["prompt"] == "\n".join(message["content"] for message in chat["messages"])
    assert conversation.turns[0].prompt_tokens == 12


def test_later_turns_carry_the_answers_that_came() -> None:
    conversation = next(workload(turns=3, prompt_tokens={"mean": 4}).measured(1))
    messages = conversation.body(2, ["one", "two"], route="chat")["messages"]

    assert [m["content"] for m in messages if m["role"] == "assistant"] == ["one", "two"]
    assert messages[-1] == {"role": "user", "content": conversation.turns[2].content}


def test_equal_blocks_of_a_trace_are_equal_text() -> None:
    trace = [
        TraceRequest(0, 512 + 100, 7, (1, 2)),
        TraceRequest(1, 512 + 300, 8, (1, 3)),
        TraceRequest(2, 60, 9),
    ]
    first, second, third = prompts(list(workload().measured(3, trace=trace)))

    assert first.split()[:512] == second.split()[:512]
    assert first.split()[512:612] != second.split()[512:612]
    assert [len(text.split()) for text in (first, second, third)] == [612, 812, 60]


def test_a_dataset_is_asked_in_a_seeded_order_and_again_when_it_is_short(tmp_path: Path) -> None:
    rows = [
        {"prompt": "one two"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    load = workload(data=tmp_path / "d.jsonl")
    asked = prompts(list(load.measured(5)))

    assert sorted(asked[:2]) == sorted(asked[2:4]) == ["hi", "one two"]
    assert not set(prompts(load.warmup(6, list(load.measured(5))))) & set(asked)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("no json", ":2: not JSON"),
        ('{"text": 1}', ":2: the row lacks"),
        ('{"messages": ["a"]}', ":2: `messages`"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "d.jsonl").write_text(f'{{"prompt": "one"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=complaint):
        list(workload(data=tmp_path / "d.jsonl").measured(2))
