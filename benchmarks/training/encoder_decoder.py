"""A T5-architecture student from random weights: `python -m training.encoder_decoder`. About four minutes.

A gated T5 of some 0.6 million weights learns the counter world's problems of few steps, with the rationale
before the answer, by all its weights; held-out loss and greedy answers say what it has learned. A T5 is
trained, merged and scored; no engine serves it, so that `decant eval` refuses it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from decant.files import write_jsonl
from training.counter_rows import make_rows
from training.runs import settings, train


def make_t5(folder: Path, data: Path) -> int:
    """Writes a T5 with random weights and a tokenizer of the rows' words; returns how many weights it has."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    from decant_distill.tokenizer import train_tokenizer

    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    tokenizer = train_tokenizer(
        f"{row['prompt']} {row['reasoning']}\nAnswer: {row['answer']}" for row in rows
    )
    configs: Any = AutoConfig
    config = configs.for_model(
        "t5",
        vocab_size=len(tokenizer),
        d_model=96,
        d_kv=24,
        d_ff=256,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dropout_rate=0.0,
    )
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType] -- torch leaves its type open
    builder: Any = AutoModelForSeq2SeqLM
    model = builder.from_config(config)
    model.save_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def short_ones(path: Path, *, most_steps: int) -> Path:
    """The rows with at most so many steps of reasoning."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    target = path.with_stem(f"{path.stem}-short")
    write_jsonl(target, (row for row in rows if row["reasoning"].count(" is ") <= most_steps))
    return target


def main() -> None:
    """Trains it and prints the judgements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/encoder-decoder"))
    parser.add_argument("--tokens", type=int, default=1_500_000)
    parser.add_argument("--most-steps", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    given = parser.parse_args()
    data, dev = make_rows(given.workdir, count=12000, dev_count=600)
    data, dev = (short_ones(path, most_steps=given.most_steps) for path in (data, dev))
    base = given.workdir / "t5"
    weights = make_t5(base, data)
    config = settings(data, given.workdir / "student", method="full", token_budget=given.tokens).with_changes(
        base=base,
        batch_tokens=2048,
        learning_rate=given.learning_rate,
        dev_data=dev,
        dev_rows=200,
        dev_metric="accuracy",
        eval_every_steps=150,
    )
    record = train(config)
    print(f"{weights:,} weights, {record['tokens']:,} tokens, {record['steps']} steps\n")
    print("| step | held-out loss | right of 200 greedy answers |\n|---|---|---|")
    for one in record["judgements"]:
        print(f"| {one['step']} | {one['loss']:.4f} | {one['accuracy']:.1%} |")


if __name__ == "__main__":
    main()
