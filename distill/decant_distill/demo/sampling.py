"""How often a model in memory answers right: one sampled or greedy completion per problem, in batches."""

from collections.abc import Sequence
from typing import Any

from decant.task import parse_response, same_answer
from decant_distill.demo.problem import ANSWER_MARKER, Problem

_BATCH = 250
_MOST_NEW_TOKENS = 96


def accuracy(
    model: Any, problems: Sequence[Problem], *, tokenizer: Any, temperature: float, seed: int
) -> float:
    """The share of problems whose answer is right; temperature 0 is greedy, else plain sampling without
    top-k or top-p.
    """
    import torch

    torch.manual_seed(seed)
    by_length = sorted(problems, key=lambda problem: len(problem.prompt))
    right = 0
    for start in range(0, len(by_length), _BATCH):
        batch = by_length[start : start + _BATCH]
        for problem, text in zip(
            batch, _complete(model, batch, tokenizer=tokenizer, temperature=temperature), strict=True
        ):
            answer = parse_response(text, marker=ANSWER_MARKER).answer
            right += answer is not None and same_answer(answer, problem.answer)
    return right / len(problems)


def _complete(model: Any, problems: Sequence[Problem], *, tokenizer: Any, temperature: float) -> list[str]:
    import torch

    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.prompt}], add_generation_prompt=True, tokenize=False
        )
        for problem in problems
    ]
    encoded = tokenizer(
        rendered, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False
    )
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    with torch.inference_mode():
        sequences_BT = model.generate(**encoded, max_new_tokens=_MOST_NEW_TOKENS, **sampling)
    return tokenizer.batch_decode(sequences_BT[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
