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
        return loader.from_pretrained(str(folder.absolute()), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: its tokenizer cannot be loaded ({_first_line(error)})") from None


def context_length(folder: Path, tokenizer: Any) -> int:
    """The most tokens that the folder's model and tokenizer both take."""
    _require_folder(folder)
    described = json.loads((folder / "config.json").read_bytes())
    positions = described.get("max_position_embeddings")
    longest = tokenizer.model_max_length
    return min(longest, positions) if isinstance(positions, int) else longest


def load_base(folder: Path, *, dtype: Dtype, nf4: bool) -> Any:
    """The folder's causal language model in `dtype`, its linear layers in double-quantized NF4 if asked for.

    QLoRA (arXiv 2305.14314) section 3; products of NF4 layers are computed in `dtype`.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    _require_folder(folder)
    sharded = Ranks.from_environment().sharded
    torch_dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[dtype]
    loader: Any = AutoModelForCausalLM
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
        return load_base(config.base, dtype="float32", nf4=False)
    model = load_base(config.base, dtype=config.compute_dtype, nf4=config.method == "qlora")
    return with_adapters(model, config)


def tidy_generation(model: Any, tokenizer: Any) -> None:
    """Makes the model's generation settings name the tokenizer's end token, and nothing else."""
    from transformers import GenerationConfig

    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def with_adapters(model: Any, config: TrainConfig) -> Any:
    """The model with fresh adapters on the layers that the config names."""
    from peft import LoraConfig, get_peft_model

    all_linear = config.targets == (ALL_LINEAR,)
    if not all_linear:
        _check_targets(model, config.targets, base=config.base)
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=ALL_LINEAR if all_linear else list(config.targets),
    )
    return get_peft_model(model, settings)


def _check_targets(model: Any, targets: Sequence[str], *, base: Path) -> None:
    import torch

    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise TrainingError(f"targets: {target} matches no linear layer of {base} (it has {known})")


def _require_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{folder}: not a Hugging Face model folder (no config.json in it)")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
