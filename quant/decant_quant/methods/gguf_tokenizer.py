"""A model folder's tokenizer and chat template as GGUF metadata."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decant.artifact import TEMPLATE_FILE, TOKENIZER_FILE
from decant.files import write_text
from decant_quant.checkpoint import read_json
from decant_quant.methods.gguf_bpe import read_bpe
from decant_quant.methods.gguf_ends import Ends, opens_with_special, read_chat_template, read_ends
from decant_quant.methods.gguf_spm import is_spm, read_spm
from decant_quant.methods.gguf_words import Words

if TYPE_CHECKING:
    import gguf

_SETTINGS_FILE, _SPECIALS_FILE = "tokenizer_config.json", "special_tokens_map.json"
_SPM_FILE = "tokenizer.model"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Everything about a tokenizer that a GGUF file holds."""

    words: Words
    ends: Ends
    chat_template: str | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how the engine will tokenize."""
        return (*self.words.notes, *self.ends.notes)

    @property
    def special_texts(self) -> list[str]:
        """The tokens that are matched whole, wherever they stand in a text."""
        from gguf import TokenType

        whole = (TokenType.CONTROL, TokenType.USER_DEFINED)
        found = zip(self.words.tokens, self.words.types, strict=True)
        return [text for text, kind in found if kind in whole]

    def add_to(self, writer: "gguf.GGUFWriter") -> None:
        """Adds the tokenizer's metadata to a file that is being written."""
        self.words.add_to(writer)
        add_stop = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
        for add, token_id in zip(add_stop, self.ends.stops, strict=False):
            add(token_id)
        if self.ends.bos is not None:
            writer.add_bos_token_id(self.ends.bos)
        if self.ends.pad is not None:
            writer.add_pad_token_id(self.ends.pad)
        writer.add_add_bos_token(self.ends.add_bos)
        writer.add_add_eos_token(self.ends.add_eos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, *, size: int) -> Vocabulary:
    """The tokenizer of a model whose embedding has `size` rows; QuantizeError when GGUF cannot carry it."""
    definition = read_json(folder / TOKENIZER_FILE)
    settings: dict[str, Any] = {}
    for name in (_SPECIALS_FILE, _SETTINGS_FILE):
        settings |= read_json(folder / name) if (folder / name).is_file() else {}
    template = read_chat_template(folder, settings)
    file = folder / TOKENIZER_FILE
    if is_spm(definition.get("model") or {}):
        opens = None if template is None else opens_with_special(template, definition, settings)
        words = read_spm(definition, file=file, size=size, opens_special=opens)
    else:
        words = read_bpe(definition, file=file, size=size)
    ends = read_ends(
        folder,
        settings=settings,
        post_processor=definition.get("post_processor"),
        tokens=words.tokens,
        template=template,
    )
    return Vocabulary(words=words, ends=ends, chat_template=template)


def copy_tokenizer(model: Path, folder: Path, vocabulary: Vocabulary) -> None:
    """Copies the tokenizer's files, the chat template always as a file of its own."""
    for name in (TOKENIZER_FILE, _SETTINGS_FILE, _SPECIALS_FILE, _SPM_FILE):
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    if vocabulary.chat_template is not None:
        write_text(folder / TEMPLATE_FILE, vocabulary.chat_template)
