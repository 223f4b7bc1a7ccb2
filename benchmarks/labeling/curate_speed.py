"""Times `decant curate` on made labels: 100,000 rows of 100 words, with cheap rules and with every rule.

`python -m labeling.curate_speed FOLDER` writes the labels once, runs each set of rules in a
process of its own and prints a Markdown table with the wall time and the peak memory of that process.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

_VOCABULARY = 20_000
_REASONING_WORDS = 60
_PROMPT_WORDS = 39
_ANSWERS = tuple("abcdefgh")

_CHEAP: dict[str, Any] = {"text": {"preset": "instruct"}}
_SIMILAR: dict[str, Any] = {
    **_CHEAP,
    "near_duplicates": 0.8,
    "redact": ["email", "secret", "iban", "national_id", "card", "ip", "phone"],
}
_ALL: dict[str, Any] = {
    **_SIMILAR,
    "keep": "verified",
    "text": {"preset": "instruct", "languages": ["en"]},
    "min_quality": 0.01,
    "max_perplexity_percentile": 99.0,
    "diverse": 50_000,
    "balance": 2.0,
}
RULE_SETS: Mapping[str, dict[str, Any]] = {
    "preset instruct": _CHEAP,
    "and near-duplicates, redaction": _SIMILAR,
    "and gold, language, quality, perplexity, diversity, balance": _ALL,
}


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Labels of 100 words each, drawn by Zipf's law; one prompt in twenty is nearly the one before."""
    generator = random.Random(0)
    words = [_word(generator) for _ in range(_VOCABULARY)]
    weights = list(accumulate(1 / rank for rank in range(1, _VOCABULARY + 1)))
    prompt: list[str] = []
    for number in range(count):
        if number % 20 == 19:
            prompt = [*prompt[:-1], generator.choice(words)]
        else:
            prompt = generator.choices(words, cum_weights=weights, k=_PROMPT_WORDS)
        reasoning = generator.choices(words, cum_weights=weights, k=_REASONING_WORDS)
        gold = generator.choice(_ANSWERS)
        answer = gold if generator.random() < 0.8 else generator.choice(_ANSWERS)
        yield {
            "id": f"r{number}",
            "line": number + 1,
            "key": f"{number:064x}",
            "sample": 0,
            "prompt": [{"role": "user", "content": " ".join(prompt)}],
            "status": "done",
            "teacher": "made",
            "gold": gold,
            "reasoning": " ".join(reasoning),
            "answer": answer,
            "response": f"{' '.join(reasoning)}\nAnswer: {answer}",
            "finish_reason": "stop",
        }


def _word(generator: random.Random) -> str:
    syllables = (
        "the",
        "an",
        "in",
        "er",
        "on",
        "re",
        "st",
        "en",
        "at",
        "or",
        "ti",
        "hi",
        "as",
        "to",
        "le",
        "is",
    )
    return "".join(generator.choice(syllables) for _ in range(generator.choice((1, 2, 2, 3))))


def timed(folder: Path, labels: Path, name: str, rules: Mapping[str, Any]) -> str:
    """One row of the table."""
    config = folder / "curate.json"
    output = folder / "train.jsonl"
    config.write_text(json.dumps({"labels": str(labels), "output": str(output), **rules}), encoding="utf-8")
    before_s = time.perf_counter()
    command = [sys.executable, "-m", "decant", "curate", "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - before_s
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{name}: decant curate failed")
    report = json.loads((folder / "curation.json").read_text(encoding="utf-8"))
    peak_mb = _peak_mb(usage)
    return f"| {name} | {wall_s:.1f} | {peak_mb:.0f} | {report['rows_in']:,} | {report['rows_out']:,} |"


def _peak_mb(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss * 1024 / 1e6  # Linux counts in KiB


def main() -> None:
    """Reads the command line, times every set of rules, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    labels = folder / f"labels-{arguments.rows}.jsonl"
    if not labels.exists():
        aside = labels.with_suffix(".aside")
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(arguments.rows))
        aside.replace(labels)
    print("| rules | wall, s | peak, MB | rows in | rows out |\n|---|---|---|---|---|")
    for name, rules in RULE_SETS.items():
        print(timed(folder, labels, name, rules), flush=True)


if __name__ == "__main__":
    main()
