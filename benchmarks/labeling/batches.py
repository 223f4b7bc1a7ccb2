"""A Batch API round trip at `decant serve`, by OpenAI's own client; prints what each call returned.

`python -m labeling.batches` takes some seconds. The engine is scripted: three rows, one of which it refuses.
"""

import argparse
import io
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labeling.served_script import served_script

_REFUSED = {"match": "refused", "status": 400, "message": "this prompt cannot be answered"}
_ANSWER = {"chunks": ["It ends in 4.\n", "Answer: even"], "ttft_s": 0.2, "prompt_tokens": 20}
_PROMPTS = {"row-1": "Is 4 even or odd?", "row-2": "Is 14 even or odd?", "row-3": "to be refused"}
_WAIT_LIMIT_S = 60.0


def round_trip(client: Any) -> None:
    """Uploads, creates, retrieves until the end, lists, and reads both files."""
    uploaded = client.files.create(file=("rows.jsonl", io.BytesIO(_input())), purpose="batch")
    _tell("files.create", uploaded, "bytes", "filename", "purpose")
    batch = client.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"job": "even"},
    )
    _tell("batches.create", batch, "status", "endpoint", "completion_window", "metadata")
    seen: list[str] = [batch.status]
    give_up_at = time.monotonic() + _WAIT_LIMIT_S
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        if time.monotonic() > give_up_at:
            raise SystemExit(f"the batch is {batch.status} after {_WAIT_LIMIT_S:.0f} s")
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
        seen += [batch.status] if batch.status != seen[-1] else []
    print(f"batches.retrieve: {' -> '.join(seen)}; counts {batch.request_counts.to_dict()}")
    print(f"batches.list: {len(client.batches.list().data)} batch")
    for name in ("output_file_id", "error_file_id"):
        text = client.files.content(getattr(batch, name)).text
        print(f"files.content({name}):")
        for line in sorted(text.splitlines(), key=lambda line: json.loads(line)["custom_id"]):
            print(f"  {_short(json.loads(line))}")


def _input() -> bytes:
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "script", "messages": [{"role": "user", "content": prompt}]},
        }
        for name, prompt in _PROMPTS.items()
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _tell(call: str, found: Any, *names: str) -> None:
    values = found.to_dict()
    print(f"{call}: {', '.join(f'{name} {values[name]!r}' for name in names)}")


def _short(line: dict[str, Any]) -> str:
    body: dict[str, Any] = line["response"]["body"] if line.get("response") else {}
    said: Any = body["choices"][0]["message"]["content"] if "choices" in body else body.get("error")
    status = line["response"]["status_code"] if line.get("response") else None
    return f"{line['custom_id']}: HTTP {status}, {said!r}, error {line.get('error')!r}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves the script, makes the round trip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/label-batches"))
    given = parser.parse_args(arguments)
    shutil.rmtree(given.workdir, ignore_errors=True)
    import openai

    batches = str(given.workdir / "batches")
    with served_script(given.workdir, _REFUSED, _ANSWER, options=("--batches", batches)) as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
        print(f"openai {openai.__version__}")
        round_trip(client)
        client.close()


if __name__ == "__main__":
    main()
