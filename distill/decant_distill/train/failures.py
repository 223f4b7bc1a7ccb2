"""What torch and safetensors raise when a machine is at its end, said in one line with what to do."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from decant.errors import TrainingError

_FULL_BYTES = 16 * 2**20


@contextmanager
def explained(folder: Path) -> Generator[None]:
    """Turns running out of disk at `folder`, or of GPU memory, into a TrainingError; lets the rest pass.

    A full disk surfaces as an OSError, a SafetensorError or a bare RuntimeError of torch's zip writer, so the
    disk itself is asked.
    """
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).partition(". ")[0]
        raise TrainingError(f"{first}; lower batch_tokens or max_length, or use method qlora") from None
    except (OSError, RuntimeError, SafetensorError) as error:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if shutil.disk_usage(there).free > _FULL_BYTES:
            raise
        first = str(error).partition("\n")[0]
        raise TrainingError(
            f"{folder}: the disk is full ({first}); free some space and run the same command again"
        ) from None
