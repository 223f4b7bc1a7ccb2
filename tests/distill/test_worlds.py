"""The bundled worlds: chance levels, rationales, splits, tokenizer, and the weights that ship."""

import json
import operator
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from decant.artifact import verify_files
from decant.config import Config
from decant_distill.demo import counter, swap
from decant_distill.demo.language import noisy_lesson
from decant_distill.demo.problem import WORLDS, Problem, Split, World, split_of
from decant_distill.demo.problems import ProblemsConfig, draw_split, run
from decant_distill.demo.sampling import accuracy
from decant_distill.tokenizer import train_tokenizer

WEIGHTS = Path(counter.__file__).parent / "weights"
MODULES = {"counter": counter, "swap": swap}


def draw_problems(world: World, count: int, *, split: Split = "train", seed: int = 0) -> list[Problem]:
    rng = random.Random(seed)
    module = MODULES[world]
    return [
        module.draw(rng, length=rng.randint(module.MIN_LENGTH, module.MAX_LENGTH), split=split)
        for _ in range(count)
    ]


def solve_counter(prompt: str) -> str:
    """An evaluator of its own, that knows words and nothing of the generator."""
    opening, *steps = prompt.split(". ")
    digit = int(re.findall(r"\d", opening)[0])
    for step in steps[:-1]:
        amount = int(re.findall(r"\d", step)[0])
        if re.search(r"multipl|scale", step):
            digit *= amount
        else:
            digit += amount if re.search(r"\bup\b|rise|add|gain", step) else -amount
    return str(digit % 10)


def solve_swap(prompt: str) -> str:
    """The same for swaps: moves all five things, not only the one asked for."""
    holder = dict(re.findall(r"(\w+) (\w+)'s", prompt.split(".", maxsplit=1)[0]))
    for step in prompt.split(". ")[1:-1]:
        first, second = [word for word in re.findall(r"[A-Z]\w+", step)[1:] if word in holder.values()]
        holder = {colour: {first: second, second: first}.get(name, name) for colour, name in holder.items()}
    question = prompt.rsplit(". ", 1)[1]
    return next(name for colour, name in holder.items() if re.search(rf"\b{colour}\b", question))


SOLVERS = {"counter": solve_counter, "swap": solve_swap}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_gold_answers_are_what_the_prompt_says(world: World, split: Split) -> None:
    for problem in draw_problems(world, 150, split=split):
        assert SOLVERS[world](problem.prompt) == problem.answer


@pytest.mark.parametrize("world", WORLDS)
def test_a_rationale_has_a_clause_per_step_and_ends_at_the_answer(world: World) -> None:
    for problem in draw_problems(world, 100):
        clauses = problem.reasoning.rstrip(".").split(". ")
        assert len(clauses) == problem.length + 1
        assert clauses[-1].split()[-1] == problem.answer
        assert problem.completion() == f"{problem.reasoning}\nAnswer: {problem.answer}"


def test_every_clause_of_a_counter_rationale_computes() -> None:
    arithmetic = {"plus": operator.add, "minus": operator.sub, "times": operator.mul}
    for problem in draw_problems("counter", 100):
        before = re.findall(r"Start (\d)", problem.reasoning)[0]
        for state, action, amount, after in re.findall(
            r"(\d) (plus|minus|times) (\d) is (\d)", problem.reasoning
        ):
            assert state == before
            assert int(after) == arithmetic[action](int(state), int(amount)) % 10
            before = after


def test_every_clause_of_a_swap_rationale_follows_from_the_one_before() -> None:
    for problem in draw_problems("swap", 100):
        opening, *clauses = problem.reasoning.rstrip(".").split(". ")
        holder = opening.split()[-1]
        for clause in clauses:
            (first, second, again), held = clause.split(":")[0].split()[1:], clause.split(":")[1].split()
            assert again == first != second
            assert held[0] == holder
            assert held[1:] == {first: [second], second: [first]}.get(holder, [])
            holder = held[-1]
        assert holder == problem.answer


@pytest.mark.parametrize(("world", "chance"), [("counter", 0.1), ("swap", 0.2)])
def test_a_constant_guess_is_at_chance(world: World, chance: float) -> None:
    count = 3000
    problems = draw_problems(world, count)
    if world == "counter":
        shares = [share / count for share in Counter(problem.answer for problem in problems).values()]
    else:
        places = Counter(re.findall(r"(\w+)'s", problem.prompt).index(problem.answer) for problem in problems)
        shares = [share / count for share in places.values()]
    assert len(shares) == round(1 / chance)
    assert all(abs(share - chance) < 4 * (chance * (1 - chance) / count) ** 0.5 for share in shares)


def test_multipliers_keep_every_answer_possible() -> None:
    used = {
        amount for p in draw_problems("counter", 300) for amount in re.findall(r"times (\d)", p.reasoning)
    }
    assert used == {"3", "7", "9"}
    assert all(
        sorted(counter.apply(digit, "times", int(k)) for digit in range(10)) == list(range(10)) for k in used
    )


@pytest.mark.parametrize("world", WORLDS)
def test_no_chain_is_in_two_splits_and_no_prompt_twice_in_one(world: World) -> None:
    config = ProblemsConfig(output_folder=Path("unused"), world=world)
    chains: dict[Split, set[tuple[str, ...]]] = {}
    for split in ("train", "dev", "test"):
        problems = draw_split(config, split=split, count=300).problems
        assert len({problem.prompt for problem in problems}) == 300
        assert all(split_of(world, problem.operations) == split for problem in problems)
        chains[split] = {problem.operations for problem in problems}
    assert not chains["train"] & chains["test"]
    assert not chains["train"] & chains["dev"]
    assert not chains["dev"] & chains["test"]


def test_a_length_out_of_chains_gives_new_wordings_and_counts_them() -> None:
    config = ProblemsConfig(output_folder=Path("unused"), world="swap", min_length=2, max_length=2)
    drawn = draw_split(config, split="test", count=60)
    chains = {problem.operations for problem in drawn.problems}
    assert drawn.repeated_chains == 60 - len(chains) > 0
    assert len({problem.prompt for problem in drawn.problems}) == 60


@pytest.mark.parametrize("world", WORLDS)
def test_held_out_phrasings_never_occur_in_training(world: World) -> None:
    def shapes(split: Split) -> set[str]:
        sentences = " ".join(problem.prompt for problem in draw_problems(world, 800, split=split)).split(". ")
        ordinals = "First|Second|Third|Fourth|Fifth|Sixth|Seventh|Eighth|Ninth|Tenth"
        steps = (re.sub(rf"^({ordinals}) ", "", s) for s in sentences if re.match(ordinals, s))
        return {re.sub(r"\d|[A-Z]\w+", "_", step) for step in steps}

    train, test = shapes("train"), shapes("test")
    assert train < test
    held_out = len(test - train)
    assert held_out == (9 if world == "counter" else 4)


def test_the_same_seed_writes_the_same_files_and_a_longer_file_begins_the_same(tmp_path: Path) -> None:
    def written(folder: str, **changes: Any) -> list[str]:
        settings: dict[str, Any] = {
            "world": "both",
            "train_count": 20,
            "dev_count": 4,
            "test_count": 4,
            **changes,
        }
        run(ProblemsConfig(output_folder=tmp_path / folder, **settings))
        return [(tmp_path / folder / f"{split}.jsonl").read_text() for split in ("train", "dev", "test")]

    first = written("a")
    assert written("b") == first
    assert written("c", seed=1)[0] != first[0]
    assert written("d", train_count=30)[0].startswith(first[0])
    row = json.loads(first[0].splitlines()[0])
    assert set(row) == {"id", "prompt", "gold", "group", "length", "reasoning"}


def test_the_problems_stage_is_configured_like_every_other() -> None:
    assert issubclass(ProblemsConfig, Config)
    with pytest.raises(ValueError, match="min_length 5 is above max_length 3"):
        ProblemsConfig(output_folder=Path("x"), min_length=5, max_length=3)
    with pytest.raises(ValueError, match="no problem of counter, which has 2 to 8 steps"):
        ProblemsConfig(output_folder=Path("x"), min_length=9, world="both")


def test_no_length_is_above_the_worlds_own_bound() -> None:
    config = ProblemsConfig(output_folder=Path("x"), world="both", max_length=10)
    assert list(config.lengths("counter")) == list(range(2, 9))
    assert list(config.lengths("swap")) == list(range(2, 11))


@pytest.mark.parametrize(("world", "chance"), [("counter", 0.1), ("swap", 0.2)])
def test_the_language_corpus_holds_no_answers(world: World, chance: float) -> None:
    rng = random.Random(1)
    problems = draw_problems(world, 2000)
    lessons = [noisy_lesson(problem, rng=rng) for problem in problems]
    answers = [
        re.findall(r"Answer: (\w+)", "".join(text for text, _ in lesson.pieces))[0] for lesson in lessons
    ]
    right = sum(answer == problem.answer for answer, problem in zip(answers, problems, strict=True)) / len(
        problems
    )
    assert abs(right - chance) < 4 * (chance * (1 - chance) / len(problems)) ** 0.5


@pytest.mark.parametrize(("world", "derived"), [("counter", r"is \d"), ("swap", r": \w+ \w+\.")])
def test_the_language_corpus_teaches_no_state(world: World, derived: str) -> None:
    problem = draw_problems(world, 1)[0]
    lesson = noisy_lesson(problem, rng=random.Random(0))
    taught = "".join(text for text, is_taught in lesson.pieces if is_taught)
    assert re.search(derived, problem.reasoning)
    assert "First" in taught
    assert not re.search(derived, taught)
    assert not re.search(r"Answer: \w", taught)


@pytest.mark.parametrize("world", WORLDS)
def test_a_noisy_rationale_has_the_form_of_a_true_one(world: World) -> None:
    form = {
        "counter": r"Start \d\.( \w+ \d (plus|minus|times) \d is \d\.)+",
        "swap": r"Start \w+ \w+\.( \w+ (\w+) \w+ \2: \w+( \w+)?\.)+",
    }[world]
    for problem in draw_problems(world, 50):
        text = "".join(text for text, _ in noisy_lesson(problem, rng=random.Random(problem.id)).pieces)
        written = re.sub(r"\n?Answer: \w+\n?", "", text)
        assert re.fullmatch(form, problem.reasoning)
        assert not written or re.fullmatch(form, written)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    problems = [
        problem
        for world in WORLDS
        for split in ("train", "dev")
        for problem in draw_problems(world, 600, split=split)
    ]
    return train_tokenizer([text for problem in problems for text in (problem.prompt, problem.completion())])


def test_words_and_digits_are_single_tokens(tokenizer: Any) -> None:
    assert len(tokenizer) % 64 == 0
    for world in WORLDS:
        for problem in draw_problems(world, 30, split="test"):
            words = re.findall(r" \w+", problem.prompt + problem.completion())
            assert all(len(tokenizer.encode(word)) == 1 for word in words)
    assert len(tokenizer.encode(" 1234")) == 4
    assert all(len(tokenizer.encode(str(digit))) == 1 for digit in range(10))


def test_any_text_survives_the_tokenizer(tokenizer: Any) -> None:
    for text in (
        "naïve café, 12 + 34 = 46",
        "日本語 🙂\u200d\t\r\n  two  spaces",
        "\x00\x7f\u00ad",
        "It's  7 .",
        "",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_rendered_prompt_begins_the_whole_conversation(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who has the red hat?"},
    ]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": "Answer: Ann"}], tokenize=False
    )
    assert prompt == "<|system|>Be brief.<|end|><|user|>Who has the red hat?<|end|><|assistant|>"
    assert whole == f"{prompt}Answer: Ann<|end|>"
    assert (
        tokenizer(whole)["input_ids"][: len(tokenizer(prompt)["input_ids"])] == tokenizer(prompt)["input_ids"]
    )


def load(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = WEIGHTS / name
    return (
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True).eval(),
        AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )


def test_the_shipped_weights_are_small_whole_and_of_the_promised_shapes() -> None:
    manifests = {name: verify_files(WEIGHTS / name) for name in ("teacher", "student-base")}
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 8_000_000
    assert 1_000_000 < manifests["teacher"].measurements["parameters"] < 2_000_000
    assert 200_000 < manifests["student-base"].measurements["parameters"] < 500_000
    for name in manifests:
        shape = json.loads((WEIGHTS / name / "config.json").read_text())
        assert shape["head_dim"] in (32, 64)
        assert shape["num_key_value_heads"] >= 2
        assert not any(shape[key] % 64 for key in ("hidden_size", "intermediate_size", "vocab_size"))


def test_the_shipped_student_tokenizer_is_the_one_the_script_trains(tokenizer: Any) -> None:
    from decant_distill.demo.build import tokenizer_texts

    shipped = load("student-base")[1]
    assert shipped.get_vocab() == train_tokenizer(tokenizer_texts()).get_vocab()
    assert shipped.chat_template == tokenizer.chat_template == load("teacher")[1].chat_template


@pytest.mark.parametrize("world", WORLDS)
def test_the_shipped_teacher_solves_its_worlds_and_the_student_base_does_not(world: World) -> None:
    problems = draw_problems(world, 40, split="test", seed=3)
    shares = {}
    for name in ("teacher", "student-base"):
        model, tokenizer = load(name)
        shares[name] = accuracy(model, problems, tokenizer=tokenizer, temperature=0.0, seed=0)
    assert shares["teacher"] > 0.7
    assert shares["student-base"] < 0.45


@pytest.mark.parametrize("world", WORLDS)
def test_the_teacher_sampled_once_was_measured_inside_the_promised_window(world: World) -> None:
    measurements = verify_files(WEIGHTS / "teacher").measurements
    assert measurements["problems_per_world"] >= 500
    assert 0.85 <= measurements["dev_accuracy_sampled_once"][world] <= 0.95
