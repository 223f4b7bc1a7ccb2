"""Objects kept as one JSON file each, so that a kill costs none of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from decant.errors import EndpointError


def read_objects(folder: Path) -> Iterator[dict[str, Any]]:
    """Every object of a folder; EndpointError names a file that holds none."""
    for path in sorted(folder.glob("*.json")):
        try:
            yield json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EndpointError(f"{path}: cannot be read ({error}); remove it, or restore it") from None
