"""Labels a JSONL file of prompts with bespokelabs-curator, run by the Python of its own environment.

`python peer_curator.py DATA BASE_URL MODEL CONCURRENCY` prints one JSON line: rows answered, and the
seconds from the call to its end.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any


def main(data: str, base_url: str, model: str, concurrency: int) -> None:
    """Asks for every row and prints how long that took."""
    # It is installed elsewhere, and has no types here.
    curator: Any = importlib.import_module("bespokelabs.curator")

    def prompt(_: object, row: dict[str, Any]) -> str:
        return str(row["prompt"])

    def parse(_: object, __: dict[str, Any], response: str) -> dict[str, Any]:
        return {"answer": response}

    lines = Path(data).read_text(encoding="utf-8").splitlines()
    rows = [{"prompt": json.loads(line)["prompt"]} for line in lines]
    asker: Any = type("Asker", (curator.LLM,), {"prompt": prompt, "parse": parse})(
        model_name=model,
        backend="openai",
        backend_params={
            "base_url": base_url,
            "api_key": "none",
            "max_concurrent_requests": concurrency,
            "max_requests_per_minute": 1_000_000,
            "max_tokens_per_minute": 1_000_000_000,
        },
    )
    started_s = time.perf_counter()
    found: Any = asker(rows)
    seconds = time.perf_counter() - started_s
    print(json.dumps({"rows": sum(bool(row["answer"]) for row in found.dataset), "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
