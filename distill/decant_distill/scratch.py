"""`decant scratch`: a small base model from nothing but text: tokenizer, random Llama, pre-training.

For where no pre-trained model may be downloaded, and for teachers and students whose whole history is known.
"""

import time
from typing import Any, Self

from pydantic import Field, model_validator

from decant.artifact import write_manifest
from decant.config import Config, InputPaths, OutputPath
from decant.dataset import Row, read_rows
from decant.errors import DataError
from decant.files import folder_aside
from decant.progress import Progress
from decant.task import TaskConfig
from decant_distill.small_llama import Shape, new_model
from decant_distill.tokenizer import train_tokenizer
from decant_distill.train.student import require_training_stack, tidy_generation

_BETAS = (0.9, 0.95)
_WARMUP_STEPS = 50


class ScratchConfig(Config):
    """The texts to learn from and the shape of the model (Llama architecture)."""

    texts: InputPaths = Field(description="datasets (JSONL) whose rows are the texts")
    output: OutputPath = Field(description="Hugging Face folder to write")
    task: TaskConfig = Field(default_factory=TaskConfig, description="how a row becomes a text (its prompt)")
    vocabulary: int = Field(default=4096, ge=320, description="tokens of the vocabulary, a multiple of 64")
    hidden_size: int = Field(default=128, ge=64, description="width")
    intermediate_size: int = Field(default=384, ge=64, description="width of the feed-forward layers")
    layers: int = Field(default=2, ge=1, description="depth")
    heads: int = Field(default=4, ge=1, description="attention heads")
    kv_heads: int = Field(default=2, ge=1, description="key-value heads")
    context: int = Field(default=512, ge=64, description="most tokens in a conversation")
    token_budget: int = Field(
        default=1_000_000, ge=0, description="tokens of pre-training; 0 leaves it random"
    )
    batch_tokens: int = Field(default=4096, ge=64, description="tokens in one step")
    learning_rate: float = Field(default=2e-3, gt=0, description="highest learning rate; it falls to 0")
    seed: int = Field(default=0, ge=0, description="of the weights and the order of the texts")
    threads: int | None = Field(default=None, ge=1, description="CPU threads, torch's choice if not set")

    @model_validator(mode="after")
    def _shape_fits(self) -> Self:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError("hidden_size must be a multiple of heads, and heads of kv_heads")
        if self.vocabulary % 64:
            raise ValueError("vocabulary must be a multiple of 64")
        return self


CONFIG = ScratchConfig


def run(config: ScratchConfig) -> None:
    """Makes the model and prints its size and closing loss."""
    require_training_stack(quantized=False)
    texts = read_texts(config)
    tokenizer, model = build(config, texts)
    loss, wall_s = pretrain(model, tokenizer, texts, config=config)
    tidy_generation(model, tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    measured: dict[str, Any] = {"parameters": parameters, "loss": loss, "wall_s": round(wall_s, 1)}
    with folder_aside(config.output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        details = {"recipe": config.model_dump(mode="json"), "measurements": measured}
        write_manifest(folder, name=config.output.name, kind="hf", method="scratch", details=details)
    print(f"{config.output}: {parameters:,} parameters, loss {loss if loss is None else round(loss, 3)}")


def read_texts(config: ScratchConfig) -> list[str]:
    """Every distinct text of the datasets, in order; DataError when there is none."""
    texts: dict[str, None] = {}
    for path in config.texts:
        for row in read_rows(path, required=config.task.prompt_fields()):
            if isinstance(row, Row):
                texts[config.task.user_text(row.fields)] = None
    if not texts:
        raise DataError(f"{', '.join(map(str, config.texts))}: no row has {config.task.prompt}")
    return list(texts)


def build(config: ScratchConfig, texts: list[str]) -> tuple[Any, Any]:
    """The tokenizer trained on the texts and a Llama with random weights."""
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tokenizer = train_tokenizer(texts, most_tokens=config.vocabulary, context=config.context)
    shape = Shape(
        layers=config.layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        heads=config.heads,
        kv_heads=config.kv_heads,
    )
    return tokenizer, new_model(shape, tokenizer=tokenizer, seed=config.seed)


def pretrain(
    model: Any, tokenizer: Any, texts: list[str], *, config: ScratchConfig
) -> tuple[float | None, float]:
    """Next-token training on the texts, end to end in blocks; the last loss in nats and the seconds."""
    import torch

    blocks = _blocks(tokenizer, texts, config)
    rows = max(config.batch_tokens // config.context, 1)
    steps = config.token_budget // (rows * config.context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=_BETAS, weight_decay=0.1)
    order = torch.Generator().manual_seed(config.seed)
    loss: float | None = None
    started = time.perf_counter()
    with Progress(steps, unit="step", label="pre-train") as progress:
        for step in range(steps):
            batch = blocks[torch.randint(len(blocks), (rows,), generator=order)]
            scale = min((step + 1) / _WARMUP_STEPS, 1.0) * (1 - step / steps)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * scale
            loss = _step(model, optimizer, batch)
            progress.advance(loss=f"{loss:.3f}")
    return loss, time.perf_counter() - started


def _step(model: Any, optimizer: Any, batch_BT: Any) -> float:
    import torch

    loss = model(input_ids=batch_BT, labels=batch_BT).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _blocks(tokenizer: Any, texts: list[str], config: ScratchConfig) -> Any:
    """[N, context] token ids of the rendered texts, shuffled and laid end to end."""
    import torch

    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(config.seed)).tolist()
    chats = [[{"role": "user", "content": texts[index]}] for index in order]
    rendered = tokenizer.apply_chat_template(chats, tokenize=False)
    ids = [token for row in tokenizer(rendered, add_special_tokens=False)["input_ids"] for token in row]
    whole = len(ids) // config.context
    if whole == 0:
        raise DataError(
            f"the texts are shorter than one context of {config.context} tokens; set context lower"
        )
    return torch.tensor(ids[: whole * config.context]).view(whole, config.context)
