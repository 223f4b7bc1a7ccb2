"""`decant split`: a dataset into parts, by a hash of each row's text, so that equal texts stay together."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from decant.config import Config, InputPath, OutputPath
from decant.dataset import TABLE_SUFFIXES, BadRow, Row, read_rows
from decant.errors import DataError
from decant.files import folder_aside
from decant.task import TaskConfig

_ALL = 2**64


class SplitConfig(Config):
    """Which dataset to split, and into what shares."""

    positional: ClassVar[tuple[str, ...]] = ("data",)

    data: InputPath = Field(description="dataset (JSONL, CSV, TSV or Parquet)")
    output: OutputPath = Field(description="folder that gets one NAME.jsonl per part")
    parts: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=lambda: {"train": 0.9, "test": 0.1},
        description="name and share of each part; shares sum to 1",
    )
    seed: int = Field(default=0, description="another seed, another split")
    task: TaskConfig = Field(default=TaskConfig(), description="which fields make up a row's prompt")

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Self:
        if abs(sum(self.parts.values()) - 1) > 1e-9:
            raise ValueError(f"parts: the shares sum to {sum(self.parts.values()):g}, not to 1")
        return self


CONFIG = SplitConfig


def run(config: SplitConfig) -> None:
    """Writes the parts and prints their sizes; a bad line goes to the first part, for labeling to report."""
    lines = _assign(config)
    empty = [name for name, rows in lines.items() if not rows]
    if empty:
        raise DataError(f"{config.data}: part {empty[0]} would be empty; give it a larger share or more rows")
    with folder_aside(config.output) as folder:
        for name, rows in lines.items():
            (folder / f"{name}.jsonl").write_bytes(b"".join(rows))
    print("  ".join(f"{name}: {len(rows)} rows" for name, rows in lines.items()))


def _assign(config: SplitConfig) -> dict[str, list[bytes]]:
    parts: dict[str, list[bytes]] = {name: [] for name in config.parts}
    first = next(iter(parts))
    is_table = config.data.suffix.lower() in TABLE_SUFFIXES
    raw = [] if is_table or not config.data.is_file() else config.data.read_bytes().splitlines(keepends=True)
    for row in read_rows(config.data, required=config.task.prompt_fields()):
        part = first if isinstance(row, BadRow) else _part(row, config) or first
        if not is_table:
            line = raw[row.line - 1].rstrip(b"\r\n")
        else:
            line = (
                row.text if isinstance(row, BadRow) else json.dumps(row.fields, ensure_ascii=False)
            ).encode()
        parts[part].append(line + b"\n")
    return parts


def _part(row: Row, config: SplitConfig) -> str | None:
    try:
        return part_of(config.task.user_text(row.fields), config.parts, seed=config.seed)
    except DataError:
        return None


def part_of(text: str, parts: Mapping[str, float], *, seed: int) -> str:
    """The part that a text belongs to: a function of the text and the seed alone."""
    normal = " ".join(text.split()).casefold()
    drawn = int.from_bytes(hashlib.sha256(f"{seed}\0{normal}".encode()).digest()[:8]) / _ALL
    reached = 0.0
    for name, share in parts.items():
        reached += share
        if drawn < reached:
            return name
    return list(parts)[-1]
