"""placeholder"""

from typing import Any


def print_needs(config: Any) -> None:
    raise NotImplementedError
