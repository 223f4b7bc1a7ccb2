"""What a training step needs in memory, found from config.json alone: no weight is read or made.

The model is built without storage, one forward pass runs on tensors that have shapes only, and what autograd
would keep for the backward pass is added up. A test holds the sum to within 15 % of the measured peak of
torch's allocator on a CPU. Not in it: what an allocator wastes, and a GPU's context.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from decant.errors import ArtifactError, TrainingError

if TYPE_CHECKING:
    from decant_distill.train.config import TrainConfig

_GB = 1e9
_BYTES = {"bfloat16": 2, "float32": 4}
# NF4 with double quantization: half a byte a weight, a byte per 64 of them, 4 bytes per 256 of those.
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
_ADAM_BYTES, _GRADIENT_BYTES = 8, 4
_DEVICES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Standing:
    """Bytes that are there all through a run, whatever the batch."""

    weights: float
    adapters: float
    gradients: float
    optimizer: float
    unpacked: float
    teacher: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        learning = self.weights + self.adapters + self.gradients + self.optimizer
        return learning + self.unpacked + self.teacher

    def per_device(self, devices: int) -> float:
        """A device's part where FSDP spreads them; the layer at work is whole on each."""
        return (self.total - self.unpacked) / devices + self.unpacked


@dataclass(frozen=True, slots=True)
class Needs:
    """Memory of a step over rows of `row_tokens`; `row` and `row_checkpointed` are one row's bytes."""

    standing: Standing
    row_tokens: int
    fixed: float
    row: float
    fixed_checkpointed: float
    row_checkpointed: float

    def step_bytes(self, rows: int, *, checkpointed: bool, devices: int = 1) -> float:
        """The peak of one device during a step of so many rows on it."""
        fixed = self.fixed_checkpointed if checkpointed else self.fixed
        row = self.row_checkpointed if checkpointed else self.row
        return self.standing.per_device(devices) + fixed + rows * row

    def most_rows(self, memory_bytes: float, *, checkpointed: bool, devices: int = 1) -> int:
        """The most rows whose step fits, 0 for none."""
        left = memory_bytes - self.step_bytes(0, checkpointed=checkpointed, devices=devices)
        return max(0, int(left // (self.row_checkpointed if checkpointed else self.row)))


def find_needs(config: "TrainConfig") -> Needs:
    """What a step of this run needs; ArtifactError when the folder's config.json describes no such model."""
    model = _shape_of(config)
    positions = model.config.max_position_embeddings
    length = max(2, min(config.max_length or positions, positions, config.batch_tokens))
    plain = [_kept_bytes(config, rows, length, checkpointed=False) for rows in (1, 2)]
    saved = [_kept_bytes(config, rows, length, checkpointed=True) for rows in (1, 2)]
    layers = max(1, int(model.config.num_hidden_layers))
    # At its peak the backward pass also holds gradients as large as the largest tensor, the logits. With
    # checkpointing that is over when a whole layer, made again, is there.
    peaks = [kept + 2 * largest for kept, largest in plain]
    again = [
        kept + max(2 * largest, (whole - kept) / layers)
        for (kept, largest), (whole, _) in zip(saved, plain, strict=True)
    ]
    return Needs(
        standing=replace(_standing(model, config), teacher=_teacher_bytes(config)),
        row_tokens=length,
        fixed=max(0.0, 2 * peaks[0] - peaks[1]),
        row=peaks[1] - peaks[0],
        fixed_checkpointed=max(0.0, 2 * again[0] - again[1]),
        row_checkpointed=again[1] - again[0],
    )


def dry_run(config: "TrainConfig") -> str:
    """Memory per device and the largest batch that fits, as text; TrainingError when not one row does."""
    needs = find_needs(config)
    memory = (config.device_memory_gb or device_memory_bytes() / _GB) * _GB
    if not needs.most_rows(memory, checkpointed=True, devices=_DEVICES[-1]):
        raise TrainingError(
            f"{config.base}: not one row of {needs.row_tokens} tokens fits {memory / _GB:.1f} GB;"
            " lower max_length, use method qlora, or a larger device"
        )
    return "\n".join(described(needs, memory))


def described(needs: Needs, memory_bytes: float) -> list[str]:
    """The lines of a dry run."""
    standing = needs.standing
    named = {
        "weights": standing.weights,
        "adapters": standing.adapters,
        "gradients": standing.gradients,
        "optimizer": standing.optimizer,
        "one layer unpacked": standing.unpacked,
        "teacher": standing.teacher,
    }
    parts = [(name, size) for name, size in named.items() if size]
    lines = [
        f"standing: {_gb(standing.total)} = {' + '.join(f'{name} {_gb(size)}' for name, size in parts)}",
        f"a row of {needs.row_tokens} tokens: {_gb(needs.row)}, checkpointed {_gb(needs.row_checkpointed)}",
        f"largest batch on {_gb(memory_bytes)} per device, in rows (tokens with padding):",
    ]
    for devices in _DEVICES:
        cells = [
            f"{rows:,} ({rows * needs.row_tokens:,})"
            for rows in (
                needs.most_rows(memory_bytes, checkpointed=checkpointed, devices=devices)
                for checkpointed in (False, True)
            )
        ]
        how = "one device" if devices == 1 else f"each of {devices} (FSDP2)"
        lines.append(f"  {how:<18} {cells[0]:>22}   checkpointed {cells[1]:>22}")
    return lines


def device_memory_bytes() -> float:
    """The memory of this process's GPU, else of the machine."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _shape_of(config: "TrainConfig") -> Any:
    """The student with its adapters on torch's meta device: shapes and types, no storage."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from decant_distill.train.student import with_adapters

    loader: Any = AutoConfig
    builder: Any = AutoModelForCausalLM
    try:
        described = loader.from_pretrained(str(config.base.absolute()), local_files_only=True)
        dtype = torch.float32 if config.method == "full" else getattr(torch, config.compute_dtype)
        with torch.device("meta"):
            model = builder.from_config(described, dtype=dtype)
            # PiSSA starts from other values in the same shapes, and would look at the weights for them.
            plain = config.with_changes(adapter="lora") if config.adapter == "pissa" else config
            return (model if config.method == "full" else with_adapters(model, plain)).train()
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ArtifactError(f"{config.base}: its config.json describes no decoder ({first})") from None


def _standing(model: Any, config: "TrainConfig") -> Standing:
    import torch

    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    if config.method == "full":
        return Standing(4.0 * learning, 0.0, 4.0 * learning, 8.0 * learning, 0.0)
    size = _BYTES[config.compute_dtype]
    head = model.get_output_embeddings()
    packed = [
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad and module is not head
    ]
    nf4 = sum(packed) if config.method == "qlora" else 0
    return Standing(
        weights=nf4 * _NF4_BYTES + (frozen - nf4) * size,
        adapters=4.0 * learning,
        gradients=float(_GRADIENT_BYTES * learning),
        optimizer=float(_ADAM_BYTES * learning),
        unpacked=float(max(packed, default=0) * size) if nf4 else 0.0,
    )


def _teacher_bytes(config: "TrainConfig") -> float:
    """The weights of an on-policy run's teacher."""
    if config.teacher is None:
        return 0.0
    teacher = _shape_of(
        config.with_changes(base=config.teacher, method="full", adapter="lora", lora_plus_ratio=None)
    )
    return float(_BYTES[config.compute_dtype] * sum(weight.numel() for weight in teacher.parameters()))


def _kept_bytes(config: "TrainConfig", rows: int, length: int, *, checkpointed: bool) -> tuple[float, float]:
    """Bytes that autograd keeps for the backward pass of one batch, and those of the largest tensor in it."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.func import functional_call

    model = _shape_of(config)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    kept: dict[int, Any] = {}
    with FakeTensorMode():
        given = {
            name: torch.empty(weight.shape, dtype=weight.dtype, requires_grad=weight.requires_grad)
            for name, weight in [*model.named_parameters(), *model.named_buffers()]
        }
        standing = {_place(weight) for weight in given.values()}

        def keep(tensor: Any) -> Any:
            # A mask of rows x 1 x length x length is only made for tensors that have no values.
            mask = tuple(tensor.shape) == (rows, 1, length, length)
            place = _place(tensor)
            if not mask and place not in standing:
                kept[place] = tensor
            return tensor

        autocast = torch.autocast("cpu", torch.bfloat16, enabled=_casts(config))
        with torch.autograd.graph.saved_tensors_hooks(keep, _as_it_is), autocast:
            ids = torch.zeros(rows, length, dtype=torch.long)
            logits = functional_call(model, given, kwargs={"input_ids": ids, "use_cache": False}).logits
            wanted = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
            torch.nn.functional.cross_entropy(wanted, ids[:, 1:].reshape(-1))
        sizes: Sequence[int] = [tensor.untyped_storage().nbytes() for tensor in kept.values()]
    return float(sum(sizes)), float(max(sizes))


def _place(tensor: Any) -> int:
    """What tells one storage from another where none has an address."""
    storage: Any = tensor.untyped_storage()
    return storage._cdata


def _as_it_is(tensor: Any) -> Any:
    return tensor


def _casts(config: "TrainConfig") -> bool:
    return config.method == "full" and config.compute_dtype == "bfloat16"


def _gb(value: float) -> str:
    return f"{value / _GB:.2f} GB" if value >= 0.1 * _GB else f"{value / 1e6:.1f} MB"
