# transformers loads its names lazily, where a type checker cannot see them.
# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
"""A decoder run layer by layer over many rows, with the weights of one layer in memory at a time.

Shapes: B rows of the same T tokens, H hidden channels, V tokens in the vocabulary. Numbers are float32.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decant.errors import MissingExtraError, QuantizeError
from decant_quant.methods.decoder_families import Block, Family, RoutedBlock
from decant_quant.methods.experts import unfuse
from decant_quant.methods.rounding import Activations, rounded_inputs

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_LAYER = "model.layers"

# Rows of one length run together up to this many tokens; logits are made for fewer, a vocabulary wide each.
_BATCH_TOKENS = 4096
_LOGIT_TOKENS = 256

# Gives tensors by the names of an unquantized checkpoint, in float32 on the CPU.
Source = Callable[[Sequence[str]], "Mapping[str, Tensor]"]


@dataclass(slots=True)
class Batch:
    """Rows of equal length on their way through the layers; `hidden` [B, T, H] is replaced layer by layer."""

    rows: tuple[int, ...]
    hidden: "Tensor"

    @property
    def length(self) -> int:
        """Tokens per row."""
        return self.hidden.shape[1]


class Decoder:
    """The modules of a model without their weights, and how rows pass through them."""

    def __init__(self, model: Any, family: Family, device: str) -> None:
        body = model.model
        self.family = family
        self.device = device
        self.experts = _unfuse(body.layers, family)
        self.shapes: dict[str, tuple[int, ...]] = {
            _stored(name, family): tuple(tensor.shape) for name, tensor in model.state_dict().items()
        }
        self.is_tied = bool(model.config.tie_word_embeddings)
        self.vocabulary: int = model.config.vocab_size
        self.context: int = model.config.max_position_embeddings
        self._embedding_scale = model.config.hidden_size**0.5 if family.scales_embedding else 1.0
        self._logit_cap: float | None = model.config.to_dict().get("final_logit_softcapping")
        self._layers: list[Any] = list(body.layers)
        self._norm = body.norm
        # What is left of the body works out positions and masks for each layer, as the model itself does.
        self._body = body
        self._recorders = [_recorder() for _ in self._layers]
        _replace_layers(body, self._recorders, device)
        self._inputs: dict[int, list[dict[str, Any]]] = {}

    def __len__(self) -> int:
        return len(self._layers)

    def layer_names(self, index: int) -> dict[str, str]:
        """One layer's tensors: the name within the layer, and in the checkpoint."""
        names = self._layers[index].state_dict()
        return {name: f"{_LAYER}.{index}.{self.family.stored(name)}" for name in names}

    def linears(self) -> tuple[str, ...]:
        """The linears of a layer that are quantized, by their names in the layer."""
        return self.family.linears(self.experts)

    def end_names(self) -> list[str]:
        """The tensors outside the layers: embedding, final norm, and the head if it has its own."""
        return [EMBEDDING, FINAL_NORM, *([] if self.is_tied else [HEAD])]

    def embed(self, source: Source, rows: Sequence[Sequence[int]]) -> list[Batch]:
        """Rows of token ids as batches at the first layer's door, in a fixed order."""
        import torch

        table_VH = source([EMBEDDING])[EMBEDDING]
        batches: list[Batch] = []
        for chosen in _same_length(rows):
            ids_BT = torch.tensor([list(rows[index]) for index in chosen])
            batches.append(Batch(tuple(chosen), self._embedding_scale * table_VH[ids_BT].to(self.device)))
        return batches

    @contextmanager
    def layer(self, index: int, tensors: "Mapping[str, Tensor]") -> Generator[Any]:
        """One layer with its weights (named as within the layer), for as long as the context lasts."""
        layer = self._layers[index]
        placed = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        layer.load_state_dict(placed, strict=True, assign=True)
        try:
            yield layer
        finally:
            layer.to("meta")

    def mix(self, index: int, layer: Any, block: Block, batch: Batch) -> "Tensor":
        """The input [B, T, C] of a block's output linear; its other linears run once."""
        import torch

        module = layer.get_submodule(block.module)
        output = module.get_submodule(block.output)
        normed_BTH = layer.get_submodule(block.norm)(batch.hidden)
        module.add_module(block.output, torch.nn.Identity())
        try:
            if block.takes_positions:
                mixed_BTC, _ = module(hidden_states=normed_BTH, **self._layer_inputs(batch.length)[index])
            else:
                mixed_BTC = module(normed_BTH)
        finally:
            module.add_module(block.output, output)
        return mixed_BTC

    def advance(
        self,
        index: int,
        source: Source,
        batches: Sequence[Batch],
        *,
        activations: Activations | None = None,
    ) -> None:
        """Takes every batch through one layer with weights from `source`, its linears' inputs rounded."""
        names = self.layer_names(index)
        found = source(list(names.values()))
        placed = {short: found[name] for short, name in names.items()}
        with (
            self.layer(index, placed) as layer,
            rounded_inputs(layer, self.linears(), activations),
        ):
            self.run_blocks(index, layer, batches)

    def run_blocks(self, index: int, layer: Any, batches: Sequence[Batch]) -> None:
        """Takes every batch through a layer that has its weights."""
        for batch in batches:
            for block in self.family.blocks:
                if isinstance(block, RoutedBlock):
                    batch.hidden = batch.hidden + routed_part(layer, block, batch)
                    continue
                mixed_BTC = self.mix(index, layer, block, batch)
                batch.hidden = batch.hidden + end_of(layer, block, mixed_BTC)

    def run_layer(self, index: int, weights: "Mapping[str, Tensor]", hidden_BTH: "Tensor") -> "Tensor":
        """The hidden states behind one layer with these weights (named as within it), gradients kept."""
        import torch

        told = self._layer_inputs(hidden_BTH.shape[1])[index]
        return torch.func.functional_call(self._layers[index], dict(weights), (hidden_BTH,), told)

    def logits(
        self, sources: Sequence[Source], hidden_TH: "Sequence[Tensor]"
    ) -> "Iterator[tuple[slice, list[Tensor]]]":
        """Logits [t, V] of the same positions by each source's norm and head, a few positions at a time."""
        import torch

        head_name = EMBEDDING if self.is_tied else HEAD
        ends = [source([FINAL_NORM, head_name]) for source in sources]
        placed = [(end[FINAL_NORM].to(self.device), end[head_name].to(self.device)) for end in ends]
        for start in range(0, len(hidden_TH[0]), _LOGIT_TOKENS):
            part = slice(start, start + _LOGIT_TOKENS)
            found: list[Tensor] = []
            for (norm_H, head_VH), hidden in zip(placed, hidden_TH, strict=True):
                self._norm.load_state_dict({"weight": norm_H}, assign=True)
                found.append(self._capped(torch.nn.functional.linear(self._norm(hidden[part]), head_VH)))
            yield part, found

    def _capped(self, logits_TV: "Tensor") -> "Tensor":
        cap = self._logit_cap
        return logits_TV if cap is None else (logits_TV / cap).tanh() * cap

    def _layer_inputs(self, length: int) -> list[dict[str, Any]]:
        """What each layer's attention is told of positions and masks, for rows of this length."""
        import torch

        if length not in self._inputs:
            hidden_size = self.shapes[EMBEDDING][1]
            nothing_BTH = torch.zeros(1, length, hidden_size, device=self.device)
            self._body(inputs_embeds=nothing_BTH, use_cache=False)
            self._inputs[length] = [dict(recorder.seen) for recorder in self._recorders]
        return self._inputs[length]


def end_of(layer: Any, block: Block, mixed_BTC: "Tensor") -> "Tensor":
    """What a block adds to the hidden states [B, T, H]: its output linear, and the norm behind it, if any."""
    added_BTH = layer.get_submodule(f"{block.module}.{block.output}")(mixed_BTC)
    return added_BTH if block.end_norm is None else layer.get_submodule(block.end_norm)(added_BTH)


def routed_part(layer: Any, block: RoutedBlock, batch: Batch) -> "Tensor":
    """What a block with experts adds to the hidden states [B, T, H]."""
    return layer.get_submodule(block.module)(layer.get_submodule(block.norm)(batch.hidden))


def build_decoder(folder: Path, family: Family, device: str) -> Decoder:
    """The decoder that config.json describes; QuantizeError when transformers cannot build it."""
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "transformers") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise QuantizeError("gptq.device is cuda, but torch finds no GPU here; leave it at auto or say cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            # Only the eager attention caps its scores, where a family does.
            capped = config.to_dict().get("attn_logit_softcapping") is not None
            chosen = {"attn_implementation": "eager"} if capped else {}
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **chosen)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise QuantizeError(
            f"{folder / 'config.json'}: describes no model ({error}); copy it again"
        ) from None
    return Decoder(model.eval().requires_grad_(False), family, device)


def _same_length(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    lengths = sorted({len(row) for row in rows})
    for length in lengths:
        same = [index for index, row in enumerate(rows) if len(row) == length]
        step = max(1, _BATCH_TOKENS // length)
        yield from (same[start : start + step] for start in range(0, len(same), step))


def _unfuse(layers: Any, family: Family) -> int:
    """Experts per layer, each made a module of its own; QuantizeError for layers that have none."""
    block = family.routed
    if block is None:
        return 0
    counts: set[int] = set()
    for layer in layers:
        names = {name for name, _ in layer.get_submodule(block.module).named_children()}
        if block.experts not in names:
            raise QuantizeError(
                "layers with experts mixed with layers without are not run layer by layer yet"
            )
        unfuse(layer, block)
        counts.add(layer.get_submodule(f"{block.module}.{block.experts}").count)
    return max(counts)


def _stored(name: str, family: Family) -> str:
    """A tensor's name in the checkpoint by its name in the model."""
    if not name.startswith(f"{_LAYER}."):
        return name
    number, _, rest = name.removeprefix(f"{_LAYER}.").partition(".")
    return f"{_LAYER}.{number}.{family.stored(rest)}"


def _replace_layers(body: Any, recorders: Sequence[Any], device: str) -> None:
    import torch

    body.layers = torch.nn.ModuleList(recorders)
    body.norm = torch.nn.Identity()
    body.rotary_emb = type(body.rotary_emb)(body.config).to(device)


def _recorder() -> Any:
    """A stand-in for a layer that notes what the layer would be told and passes the hidden states on."""
    import torch

    class Recorder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: dict[str, Any] = {}

        def forward(self, hidden_states: "Tensor", **told: Any) -> "Tensor":
            self.seen = {name: value for name, value in told.items() if name != "use_cache"}
            return hidden_states

    return Recorder()
