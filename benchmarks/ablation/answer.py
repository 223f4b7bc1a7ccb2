"""A merged student's greedy answers to a dataset, in batches: `python -m ablation.answer --help`.

Many prompts at once: this scores training, not serving, and measures no latency.
"""

import argparse
import math
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
        _prediction(row, said, task.answer_marker) for row, said in zip(rows, responses, strict=True)
    )
    write_jsonl(given.output, predictions)


@dataclass(frozen=True, slots=True)
class Response:
    """What a model says greedily, and how sure it is of that: the probability of every token of it.

    The answer alone would say little: after its own reasoning a model is nearly always sure of it.
    """

    text: str
    confidence: float


def respond(
    folder: Path, conversations: Sequence[list[dict[str, str]]], max_tokens: int, *, batch_rows: int
) -> list[Response]:
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
    responses: dict[int, Response] = {}
    for start in range(0, len(by_length), batch_rows):
        chosen = by_length[start : start + batch_rows]
        said = _generate(model, tokenizer, [prompts[i] for i in chosen], max_tokens)
        responses.update(zip(chosen, said, strict=True))
    return [responses[i] for i in range(len(prompts))]


def _generate(model: Any, tokenizer: Any, prompts: list[str], max_tokens: int) -> list[Response]:
    import torch

    given = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        said = model.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
    ids_BT = said.sequences[:, given["input_ids"].shape[1] :]
    logits_BTV: Any = torch.stack(said.logits, dim=1)
    logprobs_BT = logits_BTV.log_softmax(-1).gather(2, ids_BT[..., None])[..., 0]
    ids: list[list[int]] = ids_BT.tolist()
    logprobs: list[list[float]] = logprobs_BT.tolist()
    return [_response(tokenizer, row, scores) for row, scores in zip(ids, logprobs, strict=True)]


def _response(tokenizer: Any, ids: list[int], logprobs: list[float]) -> Response:
    end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
    text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    return Response(text=text, confidence=math.exp(min(0.0, sum(logprobs[:end]))))


def _prediction(row: dict[str, Any], said: Response, marker: str) -> dict[str, Any]:
    answer = parse_response(said.text, marker=marker).answer
    return {
        "id": row["id"],
        "length": row["length"],
        "gold": row["gold"],
        "answer": answer,
        "response": said.text,
        "confidence": said.confidence,
        "correct": answer is not None and same_answer(answer, str(row["gold"])),
    }


if __name__ == "__main__":
    main()
