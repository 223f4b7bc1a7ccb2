"""The model that learns: a base loaded whole or in NF4, with or without adapters on its linear layers."""

import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from decant.errors import ArtifactError, MissingExtraError, TrainingError
from decant_distill.train.config import ALL_LINEAR, TrainConfig
from decant_distill.train.ranks import Ranks

Dtype = Literal["bfloat16", "float16", "float32"]

# T5 and its like come without a template: the prompt as it is, closed by the end token their encoder expects.
_TWO_SIDES_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}{{ eos_token }}"
)


def require_training_stack(*, quantized: bool) -> None:
    """MissingExtraError unless the libraries of the `train` extra are there; quiets what they log."""
    needed = ["torch", "transformers", "peft", "accelerate", *(["bitsandbytes"] if quantized else [])]
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "train")
    # It announces an optional kernel package on every CPU with AVX512-BF16.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()


def device_name() -> str:
    """Where models go: this process's GPU if there is one."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer; ArtifactError when it has none that loads."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise ArtifactError(f"{folder}: has no tokenizer (no tokenizer_config.json in it)")
    loader: Any = AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(str(folder.absolute()), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: its tokenizer cannot be loaded ({_first_line(error)})") from None
    if tokenizer.chat_template is None and (folder / "config.json").is_file() and is_encoder_decoder(folder):
        tokenizer.chat_template = _TWO_SIDES_TEMPLATE
    return tokenizer


def is_encoder_decoder(folder: Path) -> bool:
    """Whether the folder's model reads the prompt with an encoder of its own, as T5 does."""
    return bool(_described(folder).get("is_encoder_decoder", False))


def decoder_start(folder: Path) -> int | None:
    """The id that an encoder-decoder starts its answers from; None for a decoder alone."""
    if not is_encoder_decoder(folder):
        return None
    described = _described(folder)
    start = described.get("decoder_start_token_id", described.get("pad_token_id"))
    if not isinstance(start, int):
        raise ArtifactError(f"{folder}/config.json: names no decoder_start_token_id; add it")
    return start


def check_dtype(folder: Path, dtype: Dtype) -> None:
    """ArtifactError for an encoder-decoder in float16: T5's activations leave its range, and all is NaN."""
    if dtype == "float16" and is_encoder_decoder(folder):
        raise ArtifactError(
            f"{folder}: is an encoder-decoder, which float16 overflows; use bfloat16 or float32"
        )


def vocabulary_size(folder: Path) -> int | None:
    """The rows of the model's output layer, where its config.json says."""
    described = _described(folder)
    size = described.get("vocab_size", (described.get("text_config") or {}).get("vocab_size"))
    return size if isinstance(size, int) else None


def check_vocabulary(folder: Path, *, most: int) -> None:
    """TrainingError when the tokenizer writes ids that the model has no row for: any step would then fail."""
    size = vocabulary_size(folder)
    if size is not None and most >= size:
        raise TrainingError(
            f"{folder}: its tokenizer writes token {most}, but the model has {size} only;"
            " take the tokenizer that belongs to the model, or resize its embeddings"
        )


def context_length(folder: Path, tokenizer: Any) -> int:
    """The most tokens that the folder's model and tokenizer both take."""
    described = _described(folder)
    positions = described.get("max_position_embeddings")
    longest = tokenizer.model_max_length
    return min(longest, positions) if isinstance(positions, int) else longest


def load_base(folder: Path, *, dtype: Dtype, nf4: bool) -> Any:
    """The folder's language model in `dtype`, its linear layers in double-quantized NF4 if asked for.

    QLoRA (arXiv 2305.14314) section 3; products of NF4 layers are computed in `dtype`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

    check_dtype(folder, dtype)
    sharded = Ranks.from_environment().sharded
    torch_dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[dtype]
    loader: Any = AutoModelForSeq2SeqLM if is_encoder_decoder(folder) else AutoModelForCausalLM
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch_dtype,
        # FSDP spreads weights of floating types only.
        bnb_4bit_quant_storage=torch_dtype if sharded else torch.uint8,
    )
    try:
        model = loader.from_pretrained(
            str(folder.absolute()),
            dtype=torch_dtype,
            device_map=None if sharded else {"": device_name()},
            quantization_config=quantization if nf4 else None,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: the model cannot be loaded ({_first_line(error)})") from None
    for module in nf4_layers(model).values():
        # With AVX512-BF16 its first forward in eval mode repacks the weight in place, for good: it can then
        # neither be dequantized nor give gradients, and computes in bf16 whatever was asked for.
        module.support_avx512bf16_for_cpu = False
    return model


def load_adapter(folder: Path, base: Path, *, dtype: Dtype, nf4: bool) -> Any:
    """A trained adapter over its base, in the numbers that it was trained over."""
    from peft import PeftModel

    loader: Any = PeftModel
    return loader.from_pretrained(load_base(base, dtype=dtype, nf4=nf4), str(folder.absolute()))


def nf4_layers(model: Any) -> dict[str, Any]:
    """The quantized linear layers of a model by name."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return {}
    from bitsandbytes.nn.modules import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def build_student(config: TrainConfig) -> Any:
    """The base as the method wants it, with float32 adapters drawn from the seed.

    TrainingError when a target matches no layer.
    """
    from transformers import set_seed

    set_seed(config.seed)
    if config.method == "full":
        # Weights stay float32: at small learning rates bf16 would round most updates away.
        model = load_base(config.base, dtype="float32", nf4=False)
    else:
        model = load_base(config.base, dtype=config.compute_dtype, nf4=config.method == "qlora")
        model = with_adapters(model, config)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def build_optimizer(model: Any, config: TrainConfig) -> Any:
    """LoRA+'s AdamW (arXiv 2402.12354), where it is asked for; None leaves the Trainer to make its own."""
    if config.lora_plus_ratio is None:
        return None
    from peft.optimizers import create_loraplus_optimizer
    from torch.optim import AdamW

    return create_loraplus_optimizer(
        model=model,
        optimizer_cls=AdamW,
        lr=config.learning_rate,
        loraplus_lr_ratio=config.lora_plus_ratio,
        loraplus_weight_decay=config.weight_decay,
    )


def tidy_generation(model: Any, tokenizer: Any) -> None:
    """Makes the model's generation settings name the tokenizer's end token, and nothing else."""
    from transformers import GenerationConfig

    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = True
    start = {}
    if model.config.is_encoder_decoder:
        start = {"decoder_start_token_id": model.config.decoder_start_token_id}
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **start,
    )


def with_adapters(model: Any, config: TrainConfig) -> Any:
    """The model with fresh adapters on the layers that the config names."""
    from peft import LoraConfig, get_peft_model

    all_linear = config.targets == (ALL_LINEAR,)
    if not all_linear:
        _check_targets(model, config.targets, base=config.base)
    settings = LoraConfig(
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=ALL_LINEAR if all_linear else list(config.targets),
        use_rslora=config.adapter == "rslora",
        use_dora=config.adapter == "dora",
        init_lora_weights="pissa" if config.adapter == "pissa" else True,
    )
    student = get_peft_model(model, settings)
    if config.adapter == "pissa":
        student.save_pretrained(str(pissa_start(config)), save_embedding_layers=False)
    return student


def pissa_start(config: TrainConfig) -> Path:
    """Where a PiSSA adapter as it was before training lies until the student is published: the difference
    is what a plain LoRA over the untouched base can carry.
    """
    return config.output.parent / f"{config.output.name}.checkpoints" / "pissa-start"


def _check_targets(model: Any, targets: Sequence[str], *, base: Path) -> None:
    import torch

    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise TrainingError(f"targets: {target} matches no linear layer of {base} (it has {known})")


def _described(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ArtifactError(f"{folder}: not a Hugging Face model folder (no config.json in it)")
    try:
        return dict(json.loads(file.read_bytes()))
    except ValueError as error:
        raise ArtifactError(f"{file}: is not JSON ({error}); restore the file") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
