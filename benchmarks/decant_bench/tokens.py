"""Counting tokens: exactly with a model's tokenizer, in words where there is none."""

import importlib
from pathlib import Path
from typing import Any, Literal, Protocol

from decant.errors import DataError, MissingExtraError

TokenUnit = Literal["tokens", "words"]


class TokenCounter(Protocol):
    """How long a text is, and in which unit."""

    @property
    def unit(self) -> TokenUnit:
        """What `count` counts."""
        ...

    def count(self, text: str) -> int:
        """The length of a text, without special tokens."""
        ...


class WordCounter:
    """Counts words: a stand-in where no tokenizer is given, and said to be one wherever it is shown."""

    unit: TokenUnit = "words"

    def count(self, text: str) -> int:
        """Words between white space."""
        return len(text.split())


class FolderTokenizer:
    """Counts with the `tokenizer.json` of a model folder."""

    unit: TokenUnit = "tokens"

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer.json" if folder.is_dir() else folder
        if not file.is_file():
            raise DataError(f"{file}: no such tokenizer; give the folder that holds tokenizer.json")
        try:
            # The benchmarks import no model library; this one is asked for by a config that names a folder.
            library: Any = importlib.import_module("tokenizers")
        except ImportError:
            raise MissingExtraError("tokenizers", "transformers") from None
        self._tokenizer = library.Tokenizer.from_file(str(file))

    def count(self, text: str) -> int:
        """Tokens of the bare text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def token_counter(folder: Path | None) -> TokenCounter:
    """The folder's tokenizer, or words where none is given."""
    return WordCounter() if folder is None else FolderTokenizer(folder)
