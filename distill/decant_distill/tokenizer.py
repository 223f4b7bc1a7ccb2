"""A tokenizer from nothing but text: byte-level BPE as GPT-2 splits text, so that GGUF can carry it and any
text encodes.
"""

from collections.abc import Iterable
from typing import Any

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS: tuple[str, ...] = (PAD, SYSTEM, USER, ASSISTANT, END)

# The bundled worlds' words need about 500 tokens; a bound that is never met makes each of them one token.
_MOST_TOKENS = 4096
_VOCABULARY_MULTIPLE = 64

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], *, most_tokens: int = _MOST_TOKENS, context: int = 512) -> Any:
    """A `PreTrainedTokenizerFast` with the chat template, in which every word of `texts` is one token if it
    can be.

    Digits never merge with digits as long as no text holds two in a row. Reserved tokens fill the
    vocabulary up to a
    multiple of 64, so that tokenizer, embedding and GGUF agree on its size.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=most_tokens,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    missing = -tokenizer.get_vocab_size() % _VOCABULARY_MULTIPLE
    tokenizer.add_special_tokens([AddedToken(f"<|reserved_{i}|>", special=True) for i in range(missing)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
