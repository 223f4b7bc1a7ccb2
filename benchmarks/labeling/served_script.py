"""A `decant serve` of a script, for as long as a measurement takes."""

import json
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_START_LIMIT_S = 60.0


@contextmanager
def served_script(folder: Path, *answers: Mapping[str, Any], options: Sequence[str] = ()) -> Generator[str]:
    """Its base URL; the first of the answers that matches is given. SystemExit when it does not start."""
    folder.mkdir(parents=True, exist_ok=True)
    script, ready, log = folder / "script.json", folder / "ready.json", folder / "serve.log"
    ready.unlink(missing_ok=True)
    script.write_text(json.dumps({"answers": answers}), encoding="utf-8")
    command = [sys.executable, "-m", "decant", "serve", str(script), "--port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--ready-file", str(ready), *options], stdout=output, stderr=output
        )
    try:
        give_up_at = time.monotonic() + _START_LIMIT_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise SystemExit(f"the endpoint did not start; see {log}")
            time.sleep(0.02)
        yield json.loads(ready.read_text(encoding="utf-8"))["base_url"]
    finally:
        process.terminate()
        process.wait()
