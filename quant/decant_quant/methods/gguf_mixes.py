"""Which number format each tensor of a GGUF file gets, type by type, as data.

The mixes of the K and IQ types follow llama.cpp's own: output heads, values and the last projection of a
layer carry errors furthest and get more bits; so do the first layers, whose errors pass through the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# Which layers of L: `ends` are the first and last eighths and every third between them.
Layers = Literal["all", "first two", "first four", "first sixteenth", "first eighth", "middle", "ends"]


@dataclass(frozen=True, slots=True)
class Raise:
    """Another format for some kinds of tensors (their GGUF names within a layer), in some layers.

    `ratio`: only where at least so many query heads share a key head, which makes keys and values small.
    `plain`: only where no importance is known.
    """

    kinds: tuple[str, ...]
    name: str
    layers: Layers = "all"
    ratio: int = 1
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Mix:
    """The formats of one type: `matrices` within layers but for those raised, where the last match holds.

    `head` is the output head, and the embedding where it is tied. What `needs_importance` is noise without.
    """

    matrices: str
    embedding: str
    head: str
    file_type: str
    raised: tuple[Raise, ...] = ()
    needs_importance: bool = False


def _plain(name: str, ends: str) -> Mix:
    """One format throughout. Under 8 bits the ends stay at Q8_0: their errors reach every logit, and they are
    few bytes of the whole."""
    return Mix(name, ends, ends, f"MOSTLY_{name}")


_V, _K, _Q, _OUT = ("attn_v",), ("attn_k",), ("attn_q",), ("attn_output",)
_DOWN, _UP = ("ffn_down",), ("ffn_up", "ffn_gate")


def _k(name: str, file_type: str, *raised: Raise) -> Mix:
    return Mix(name, name, "Q6_K", f"MOSTLY_{file_type}", raised)


def _low(name: str, file_type: str, ends: str, *raised: Raise) -> Mix:
    """Under 3 bits: nothing of use without an importance."""
    shared = (Raise(_V, ends), Raise(_V, "Q4_K", ratio=4), Raise(_DOWN, ends, "first eighth"))
    return Mix(name, ends, "Q5_K", f"MOSTLY_{file_type}", (*shared, *raised), needs_importance=True)


MIXES: Mapping[str, Mix] = {
    "F32": Mix("F32", "F32", "F32", "ALL_F32"),
    "BF16": _plain("BF16", "BF16"),
    "F16": _plain("F16", "F16"),
    "Q8_0": _plain("Q8_0", "Q8_0"),
    "Q5_1": _plain("Q5_1", "Q8_0"),
    "Q5_0": _plain("Q5_0", "Q8_0"),
    "Q4_1": _plain("Q4_1", "Q8_0"),
    "Q4_0": _plain("Q4_0", "Q8_0"),
    "Q6_K": _k("Q6_K", "Q6_K"),
    "Q5_K_M": _k("Q5_K", "Q5_K_M", Raise((*_V, *_DOWN), "Q6_K", "ends")),
    "Q5_K_S": _k("Q5_K", "Q5_K_S"),
    "Q4_K_M": _k("Q4_K", "Q4_K_M", Raise((*_V, *_DOWN), "Q6_K", "ends")),
    "Q4_K_S": _k("Q4_K", "Q4_K_S", Raise(_V, "Q5_K", "first four"), Raise(_DOWN, "Q5_K", "first eighth")),
    "Q3_K_L": _k("Q3_K", "Q3_K_L", Raise((*_V, *_DOWN, *_OUT), "Q5_K")),
    "Q3_K_M": _k(
        *("Q3_K", "Q3_K_M"),
        Raise((*_V, *_DOWN, *_OUT), "Q4_K"),
        Raise(_V, "Q5_K", "first two"),
        Raise(_DOWN, "Q5_K", "first sixteenth"),
    ),
    "Q3_K_S": _k("Q3_K", "Q3_K_S"),
    "Q2_K": _k("Q2_K", "Q2_K", Raise((*_V, *_DOWN, *_OUT), "Q3_K"), Raise(_V, "Q4_K", ratio=4)),
    "IQ4_NL": _k(
        *("IQ4_NL", "IQ4_NL"),
        Raise(_V, "Q5_K", ratio=4),
        Raise(_DOWN, "Q5_K", "first eighth", plain=True),
    ),
    "IQ4_XS": _k(
        *("IQ4_XS", "IQ4_XS"),
        Raise(_V, "Q5_K", ratio=4),
        Raise(_DOWN, "Q5_K", "first eighth", plain=True),
    ),
    "IQ3_M": _k(
        *("IQ3_S", "IQ3_M"),
        Raise((*_V, *_OUT), "Q4_K"),
        Raise(_DOWN, "Q4_K", "first eighth"),
    ),
    "IQ3_S": _k("IQ3_S", "IQ3_S", Raise(_V, "Q4_K", ratio=4)),
    "IQ3_XS": _k(
        *("IQ3_S", "IQ3_XS"),
        Raise((*_Q, *_K), "IQ3_XXS"),
        Raise(_UP, "IQ3_XXS", "middle"),
        Raise(_V, "Q4_K", ratio=4),
    ),
    "IQ3_XXS": Mix(
        *("IQ3_XXS", "IQ3_S", "Q5_K", "MOSTLY_IQ3_XXS"),
        (
            Raise((*_Q, *_K), "IQ2_S"),
            Raise(_OUT, "IQ3_S"),
            Raise(_V, "IQ3_S", plain=True),
            Raise(_V, "Q4_K", ratio=4),
            Raise(_DOWN, "Q3_K", plain=True),
            Raise(_DOWN, "Q4_K", "first eighth", plain=True),
        ),
    ),
    "IQ2_M": _low("IQ2_S", "IQ2_M", "IQ3_S", Raise(_OUT, "IQ3_S")),
    "IQ2_S": _low("IQ2_XS", "IQ2_S", "IQ3_S", Raise(_OUT, "IQ3_S")),
    "IQ2_XS": _low("IQ2_XS", "IQ2_XS", "Q2_K"),
    "IQ2_XXS": _low("IQ2_XXS", "IQ2_XXS", "Q2_K"),
    "IQ1_M": _low("IQ1_M", "IQ1_M", "Q2_K", Raise(_OUT, "IQ2_XXS")),
    "IQ1_S": _low("IQ1_S", "IQ1_S", "Q2_K", Raise(_OUT, "IQ2_XXS")),
}

# What stands in where a row is not a whole number of 256 values: blocks of 32 with about as many bits.
SMALL_BLOCKS: Mapping[str, str] = {
    "Q6_K": "Q8_0",
    "Q5_K": "Q5_1",
    "Q4_K": "Q5_0",
    **dict.fromkeys(
        ("Q3_K", "Q2_K", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
        "IQ4_NL",
    ),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands: its `kind` within a layer (None outside) and what its model is like."""

    kind: str | None
    layer: int
    layers: int
    heads_per_key: int
    experts: int
    has_importance: bool


def format_of(mix: Mix, place: Place) -> str:
    """The format that the mix wants for a matrix inside the layers."""
    if (
        place.experts >= 4
        and place.kind in ("attn_k", "attn_v")
        and mix.matrices not in ("F32", "BF16", "F16")
    ):
        # Beside the experts they are a few bytes, and every token depends on them.
        return "Q8_0"
    chosen = mix.matrices
    for rule in mix.raised:
        if place.kind in rule.kinds and _covers(rule, place):
            chosen = rule.name
    return chosen


def _covers(rule: Raise, place: Place) -> bool:
    if place.heads_per_key < rule.ratio or (rule.plain and place.has_importance):
        return False
    index, count = place.layer, place.layers
    eighth = count // 8
    covered: Mapping[Layers, bool] = {
        "all": True,
        "first two": index < 2,
        "first four": index < 4,
        "first sixteenth": index < count // 16,
        "first eighth": index < eighth,
        "middle": eighth <= index < 7 * count // 8,
        "ends": index < eighth or index >= 7 * count // 8 or (index - eighth) % 3 == 2,
    }
    return covered[rule.layers]
