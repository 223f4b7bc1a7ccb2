# transformers loads its names lazily, where a type checker cannot see them.
# pyright: reportAttributeAccessIssue=false
"""A checkpoint or adapter folder becomes a model in memory, ready to decode."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from decant.errors import ArtifactError
from decant_serve.engines.protocol import Pooling
from decant_serve.engines.transformers import ModelSettings


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with what decoding needs to know. `context` counts prompt and answer together.

    `pooling` says how its states become an embedding.
    """

    model: Any
    tokenizer: Any
    device: str
    end_ids: frozenset[int]
    context: int
    pooling: Pooling = "off"

    def render(self, messages: list[dict[str, str]]) -> str:
        """A chat as the template writes it, up to where the assistant speaks."""
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; a rendered chat brings its special tokens itself."""
        return self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]

    def decode(self, token_ids: list[int]) -> str:
        """The text of an answer, without special tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def spell(self, token_id: int) -> str:
        """One token as text, special or not."""
        return self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)


def load(settings: ModelSettings) -> LoadedModel:
    """Loads the model; ArtifactError when its files do not make one."""
    import torch
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(settings.threads)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    tokenizer = _loaded(AutoTokenizer.from_pretrained, settings.path, local_files_only=True)
    model = _load_base(settings, device)
    if settings.base is not None:
        from peft import PeftModel

        model = _loaded(partial(PeftModel.from_pretrained, model), settings.path)
    model.eval()
    if settings.pooling != "off" and innermost(model).base_model is innermost(model):
        raise ArtifactError(f"{settings.path}: no embeddings of this architecture; leave --pooling out")
    longest = model.config.get_text_config().max_position_embeddings
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        device=device,
        end_ids=_end_ids(model, tokenizer, adapter=settings.base is not None),
        context=min(settings.context, longest or settings.context),
        pooling=settings.pooling,
    )


def _load_base(settings: ModelSettings, device: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype: Any = getattr(torch, settings.dtype) if settings.dtype else "auto"
    # Said as None, it would hide what the folder's own config.json says of its quantization.
    quantized: dict[str, Any] = {}
    if settings.nf4:
        # It announces an optional kernel package on every CPU with AVX512-BF16.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        quantized["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = _loaded(
        AutoModelForCausalLM.from_pretrained,
        settings.base or settings.path,
        dtype=dtype,
        device_map={"": device},
        local_files_only=True,
        **quantized,
    )
    if settings.nf4:
        _compute_as_in_training(model)
    return model


def _compute_as_in_training(model: Any) -> None:
    """Training keeps bitsandbytes from repacking NF4 weights for AVX512-BF16: so do we."""
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _end_ids(model: Any, tokenizer: Any, *, adapter: bool) -> frozenset[int]:
    """The tokens that end an answer: generation_config.json's, or else the tokenizer's.

    An adapter was trained to end with its own tokenizer's, whatever its base says.
    """
    named = model.generation_config.eos_token_id
    ids = frozenset([named] if isinstance(named, int) else named or ())
    own = frozenset() if tokenizer.eos_token_id is None else frozenset({tokenizer.eos_token_id})
    return ids | own if adapter else ids or own


def innermost(model: Any) -> Any:
    """The model itself, out of PEFT's wrapper."""
    from transformers import PreTrainedModel

    return model if isinstance(model, PreTrainedModel) else model.get_base_model()


def _loaded(load_from: Callable[..., Any], path: str, **options: Any) -> Any:
    try:
        return load_from(path, **options)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"{Path(path)}: cannot be loaded ({reason})") from None
