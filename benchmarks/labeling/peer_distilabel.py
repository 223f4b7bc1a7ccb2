"""Labels a JSONL file of prompts with distilabel, run by the Python of its own environment.

`python peer_distilabel.py DATA BASE_URL MODEL CONCURRENCY` prints one JSON line: rows answered, and the
seconds from the pipeline's start to its end.
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
    models: Any = importlib.import_module("distilabel.models")
    pipelines: Any = importlib.import_module("distilabel.pipeline")
    steps: Any = importlib.import_module("distilabel.steps")
    tasks: Any = importlib.import_module("distilabel.steps.tasks")
    lines = Path(data).read_text(encoding="utf-8").splitlines()
    rows = [{"instruction": json.loads(line)["prompt"]} for line in lines]
    with pipelines.Pipeline(name="peer") as pipeline:
        source = steps.LoadDataFromDicts(data=rows, batch_size=concurrency)
        llm = models.OpenAILLM(
            model=model, base_url=base_url, api_key="none", generation_kwargs={"max_new_tokens": 256}
        )
        source.connect(tasks.TextGeneration(llm=llm, input_batch_size=concurrency))
    started_s = time.perf_counter()
    found: Any = pipeline.run(use_cache=False)
    seconds = time.perf_counter() - started_s
    answered = sum(bool(row["generation"]) for row in found["default"]["train"])
    print(json.dumps({"rows": answered, "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
