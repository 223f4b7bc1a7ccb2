"""A merged student's greedy answers to a dataset, in batches: `python -m ablation.answer --help`.

Many prompts at once: this scores training, not serving, and measures no latency.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.dataset import read_good_rows
from decant.files import write_jsonl
from decant.task import TaskConfig, parse_response, same_answer


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes one scored prediction per row."""
    parser = argparse.ArgumentParser(prog="python -m ablation.answer", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument(
        "--data", type=Path, required=True, help="dataset with prompt, gold and length (JSONL)"
    )
    parser.add_argument("--output", type=Path, required=True, help="predictions to write (JSONL)")
    parser.add_argument("--max-tokens", type=int, default=96, help="longest answer")
    parser.add_argument("--batch-rows", type=int, default=100, help="prompts at once")
    parser.add_argument("--votes", type=int, default=0, help="sampled answers per row, for its confidence")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(given.threads)
    task = TaskConfig(max_tokens=given.max_tokens)
    rows = [row.fields for row in read_good_rows(given.data, required=("id", "prompt", "gold", "length"))]
    responses = respond(
        given.model,
        [task.messages(row) for row in rows],
        task=task,
        batch_rows=given.batch_rows,
        votes=given.votes,
    )
    predictions = (
        _prediction(row, said, task.answer_marker) for row, said in zip(rows, responses, strict=True)
    )
    write_jsonl(given.output, predictions)


@dataclass(frozen=True, slots=True)
class Response:
    """What a model says greedily, and the answers that it gives when it is sampled at temperature 1."""

    text: str
    votes: tuple[str | None, ...] = ()


def respond(
    folder: Path,
    conversations: Sequence[list[dict[str, str]]],
    *,
    task: TaskConfig,
    batch_rows: int,
    votes: int = 0,
) -> list[Response]:
    """The greedy responses and `votes` sampled answers, in the order of the conversations, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType] -- torch leaves its type open
    tokenizers: Any = AutoTokenizer
    models: Any = AutoModelForCausalLM
    tokenizer = tokenizers.from_pretrained(str(folder), padding_side="left")
    model = models.from_pretrained(str(folder), dtype="float32").eval()
    prompts = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in conversations
    ]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    responses: dict[int, Response] = {}
    for start in range(0, len(by_length), batch_rows):
        chosen = by_length[start : start + batch_rows]
        asked = [prompts[i] for i in chosen]
        greedy = _generate(model, tokenizer, asked, task.max_tokens)
        drawn = [_generate(model, tokenizer, asked, task.max_tokens, sample=True) for _ in range(votes)]
        for row, i in enumerate(chosen):
            answers = (parse_response(texts[row], marker=task.answer_marker).answer for texts in drawn)
            responses[i] = Response(text=greedy[row], votes=tuple(answers))
    return [responses[i] for i in range(len(prompts))]


def _generate(
    model: Any, tokenizer: Any, prompts: list[str], max_tokens: int, *, sample: bool = False
) -> list[str]:
    import torch

    given = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt")
    sampling: dict[str, Any] = {"do_sample": False}
    if sample:
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    with torch.inference_mode():
        ids = model.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            max_new_tokens=max_tokens,
            pad_token_id=tokenizer.eos_token_id,
            **sampling,
        )
    return tokenizer.batch_decode(ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True)


def _prediction(row: dict[str, Any], said: Response, marker: str) -> dict[str, Any]:
    """One line of the predictions. The confidence is the share of the sampled answers that are the greedy
    one: it sums over reasonings, while after its own reasoning a model is nearly certain of any answer.
    """
    answer = parse_response(said.text, marker=marker).answer
    prediction = {
        "id": row["id"],
        "length": row["length"],
        "gold": row["gold"],
        "answer": answer,
        "response": said.text,
        "correct": answer is not None and same_answer(answer, str(row["gold"])),
    }
    if not said.votes:
        return prediction
    alike = sum(answer is not None and vote is not None and same_answer(answer, vote) for vote in said.votes)
    return {**prediction, "confidence": alike / len(said.votes)}


if __name__ == "__main__":
    main()
