"""A merged student's greedy answers to a dataset, in batches: `python -m ablation.answer --help`.

Many prompts at once: this scores training, not serving, and measures no latency.
"""

import argparse
from collections.abc import Sequence
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
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(given.threads)
    task = TaskConfig(max_tokens=given.max_tokens)
    rows = [row.fields for row in read_good_rows(given.data, required=("id", "prompt", "gold", "length"))]
    responses = respond(
        given.model, [task.messages(row) for row in rows], task.max_tokens, batch_rows=given.batch_rows
    )
    predictions = (
        _prediction(row, text, task.answer_marker) for row, text in zip(rows, responses, strict=True)
    )
    write_jsonl(given.output, predictions)


def respond(
    folder: Path, conversations: Sequence[list[dict[str, str]]], max_tokens: int, *, batch_rows: int
) -> list[str]:
    """The model's greedy responses, in the order of the conversations, in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizers: Any = AutoTokenizer
    models: Any = AutoModelForCausalLM
    tokenizer = tokenizers.from_pretrained(str(folder), padding_side="left")
    model = models.from_pretrained(str(folder), dtype="float32").eval()
    prompts = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in conversations
    ]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    responses = [""] * len(prompts)
    for start in range(0, len(by_length), batch_rows):
        chosen = by_length[start : start + batch_rows]
        texts = _generate(model, tokenizer, [prompts[i] for i in chosen], max_tokens)
        for i, text in zip(chosen, texts, strict=True):
            responses[i] = text
    return responses


def _generate(model: Any, tokenizer: Any, prompts: list[str], max_tokens: int) -> list[str]:
    import torch

    given = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    return tokenizer.batch_decode(ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True)


def _prediction(row: dict[str, Any], response: str, marker: str) -> dict[str, Any]:
    answer = parse_response(response, marker=marker).answer
    return {
        "id": row["id"],
        "length": row["length"],
        "gold": row["gold"],
        "answer": answer,
        "response": response,
        "correct": answer is not None and same_answer(answer, str(row["gold"])),
    }


if __name__ == "__main__":
    main()
