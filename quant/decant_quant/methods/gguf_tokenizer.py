"""A model folder's tokenizer and chat template as GGUF metadata."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from decant.artifact import TEMPLATE_FILE, TOKENIZER_FILE
from decant.files import write_text
from decant_quant.checkpoint import read_json
from decant_quant.methods.gguf_bpe import Bpe, read_bpe
from decant_quant.methods.gguf_ends import Ends, read_chat_template, read_ends

if TYPE_CHECKING:
    import gguf

_SETTINGS_FILE, _SPECIALS_FILE = "tokenizer_config.json", "special_tokens_map.json"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Everything about a tokenizer that a GGUF file holds."""

    bpe: Bpe
    ends: Ends
    chat_template: str | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how the engine will tokenize."""
        return (*self.bpe.notes, *self.ends.notes)

    def add_to(self, writer: "gguf.GGUFWriter") -> None:
        """Adds the tokenizer's metadata to a file that is being written."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.bpe.pre)
        writer.add_token_list(self.bpe.tokens)
        writer.add_token_types(self.bpe.types)
        writer.add_token_merges(self.bpe.merges)
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
    settings: dict[str, object] = {}
    for name in (_SPECIALS_FILE, _SETTINGS_FILE):
        settings |= read_json(folder / name) if (folder / name).is_file() else {}
    bpe = read_bpe(definition, file=folder / TOKENIZER_FILE, size=size)
    template = read_chat_template(folder, settings)
    ends = read_ends(
        folder,
        settings=settings,
        post_processor=definition.get("post_processor"),
        tokens=bpe.tokens,
        template=template,
    )
    return Vocabulary(bpe=bpe, ends=ends, chat_template=template)


def copy_tokenizer(model: Path, folder: Path, vocabulary: Vocabulary) -> None:
    """Copies the tokenizer's files, the chat template always as a file of its own."""
    for name in (TOKENIZER_FILE, _SETTINGS_FILE, _SPECIALS_FILE):
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    if vocabulary.chat_template is not None:
        write_text(folder / TEMPLATE_FILE, vocabulary.chat_template)
