"""A training run in a process of its own, killed at a moment that a test names."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from decant_distill.train.config import TrainConfig


def killed_at(config: TrainConfig, condition: Callable[[], bool], tmp_path: Path) -> None:
    """Starts the run as a process of its own and kills it with SIGKILL as soon as the condition holds."""
    file = tmp_path / "train.json"
    file.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "decant", "train", "--config", str(file)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as child:
        while not condition():
            assert child.poll() is None, "the run ended before it could be killed"
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
