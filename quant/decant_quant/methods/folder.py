"""What goes with the weights in a Hugging Face folder: the tokenizer's files, and the index of the shards."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from decant.artifact import TEMPLATE_FILE, TOKENIZER_FILE
from decant.files import write_json
from decant_quant.checkpoint import INDEX, stored_tensors

_SIDE_FILES = (
    TOKENIZER_FILE,
    TEMPLATE_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)


def copy_side_files(model: Path, folder: Path) -> None:
    """Copies the tokenizer, the chat template and the generation settings, as far as there are any."""
    for name in _SIDE_FILES:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)


def write_index(folder: Path, files: Sequence[str]) -> None:
    """The index that says which of the shards holds which tensor."""
    places = {name: file for file in files for name in stored_tensors(folder / file)}
    size = sum((folder / file).stat().st_size for file in files)
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))})
