# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What a quantized model lost, measured on its files as they lie on disk, beside the unquantized model.

Both run layer by layer over the same rows. Divergence is KL(unquantized || quantized) of the next token, in
nats.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decant.errors import QuantizeError
from decant.golden import TOLERANCES, GoldenPrompt, GoldenReport, GoldenSet, Observation, compare
from decant.stats import Interval, paired_difference
from decant.timing import percentile
from decant_quant.methods.calibration import TokenRow
from decant_quant.methods.decoder import Batch, Decoder, Source
from decant_quant.methods.rounding import Activations

if TYPE_CHECKING:
    from torch import Tensor

STAGE = "quantized"


@dataclass(frozen=True, slots=True)
class Quality:
    """Held-out loss of a quantized model; `tokens` were scored, those of the answers where rows have one.

    `kl_mean_low` and `kl_mean_high` bound the mean divergence, `top1_agreement_low` the agreement: a 95 %
    bootstrap over rows, for a row's tokens are not independent. `flips` is the share of tokens whose greedy
    guess was right and became wrong or the other way round (arXiv 2407.09141): losses and gains that cancel
    in an accuracy both count.
    """

    rows: int
    tokens: int
    perplexity_unquantized: float
    perplexity: float
    kl_mean: float
    kl_mean_low: float
    kl_mean_high: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    top1_agreement_low: float
    flips: float

    def sentence(self) -> str:
        """The numbers in one line."""
        return (
            f"against the unquantized model on {self.tokens} tokens of {self.rows} held-out rows: perplexity"
            f" {self.perplexity:.4g} (was {self.perplexity_unquantized:.4g}), KL mean {self.kl_mean:.3g},"
            f" p99 {self.kl_p99:.3g}, max {self.kl_max:.3g} nats, same top token {self.top1_agreement:.2%},"
            f" flips {self.flips:.2%}"
        )


@dataclass(frozen=True, slots=True)
class LayerError:
    """Squared error of the hidden states behind one layer, as a share of what the layer adds to them.

    `own`: the quantized layer on the unquantized model's states, so its own doing alone. `drift`: with the
    errors of all layers before it.
    """

    layer: int
    own: float
    drift: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What one comparison found; `kl_by_row` is each held-out row's summed divergence over the
    mean row's length, in order, so that its mean is `kl_mean`.
    """

    quality: Quality
    layers: tuple[LayerError, ...]
    kl_by_row: tuple[float, ...]


def measure(
    decoder: Decoder,
    *,
    original: Source,
    quantized: Source,
    heldout: Sequence[TokenRow],
    activations: Activations | None = None,
) -> Measured:
    """Runs both side by side, the quantized one with its linears' inputs rounded to `activations`, if any;
    QuantizeError when it gives no numbers.
    """
    import torch

    rows = [row.token_ids for row in heldout]
    with torch.no_grad():
        first, second, layers = _states_side_by_side(decoder, original, quantized, rows, activations)
        spans = [slice(row.answer_start - 1, len(row.token_ids) - 1) for row in heldout]
        states = [torch.cat([h[s] for h, s in zip(h_TH, spans, strict=True)]) for h_TH in (first, second)]
        targets_N = torch.cat([torch.tensor(row.token_ids[row.answer_start :]) for row in heldout])
        scored = _score(decoder, (original, quantized), states, targets_N)
    if not torch.isfinite(scored.kl).all():
        raise QuantizeError("the quantized model's answers are not finite; calibrate on other rows")
    lengths = [len(row.token_ids) - row.answer_start for row in heldout]
    return Measured(
        quality=_quality(scored, lengths),
        layers=layers,
        kl_by_row=_by_length(scored.kl, lengths),
    )


@dataclass(frozen=True, slots=True)
class _Scored:
    """Per scored token, float64 or bool, [N]: divergence, both losses, and what the top tokens were."""

    kl: "Tensor"
    loss_before: "Tensor"
    loss_after: "Tensor"
    same: "Tensor"
    flipped: "Tensor"


def _score(
    decoder: Decoder, sources: Sequence[Source], states: "Sequence[Tensor]", targets_N: "Tensor"
) -> _Scored:
    import torch

    found: list[tuple[Tensor, ...]] = []
    for part, (before_TV, after_TV) in decoder.logits(sources, states):
        p_TV, q_TV = before_TV.log_softmax(-1), after_TV.log_softmax(-1)
        target_T = targets_N[part].to(p_TV.device)
        top_p_T, top_q_T = before_TV.argmax(-1), after_TV.argmax(-1)
        found.append(
            (
                (p_TV.exp() * (p_TV - q_TV)).sum(-1).clamp_(min=0).double(),
                -p_TV.gather(1, target_T[:, None])[:, 0].double(),
                -q_TV.gather(1, target_T[:, None])[:, 0].double(),
                top_p_T == top_q_T,
                (top_p_T == target_T) != (top_q_T == target_T),
            )
        )
    return _Scored(*(torch.cat(column).cpu() for column in zip(*found, strict=True)))


def _quality(scored: _Scored, lengths: Sequence[int]) -> Quality:
    bounds = _interval(_by_length(scored.kl, lengths))
    disagreement = _interval(_by_length((~scored.same).double(), lengths))
    return Quality(
        rows=len(lengths),
        tokens=len(scored.kl),
        perplexity_unquantized=math.exp(float(scored.loss_before.mean())),
        perplexity=math.exp(float(scored.loss_after.mean())),
        kl_mean=float(scored.kl.mean()),
        kl_mean_low=bounds.low,
        kl_mean_high=bounds.high,
        kl_p99=percentile(scored.kl.tolist(), 99),
        kl_max=float(scored.kl.max()),
        top1_agreement=float(scored.same.double().mean()),
        top1_agreement_low=1.0 - disagreement.high,
        flips=float(scored.flipped.double().mean()),
    )


def _by_length(values_N: "Tensor", lengths: Sequence[int]) -> tuple[float, ...]:
    """Each row's sum over the mean row's length: their mean is the mean over tokens."""
    each = len(values_N) / len(lengths)
    return tuple(float(part.sum()) / each for part in values_N.split(list(lengths)))


def _interval(by_row: Sequence[float]) -> Interval:
    # A file that lost nothing has no spread either, and 0/1 outcomes would get another kind of interval.
    return paired_difference([0.0] * len(by_row), by_row, seed=0).interval if any(by_row) else Interval(0, 0)


def _states_side_by_side(
    decoder: Decoder,
    original: Source,
    quantized: Source,
    rows: Sequence[Sequence[int]],
    activations: Activations | None,
) -> "tuple[list[Tensor], list[Tensor], tuple[LayerError, ...]]":
    """Final hidden states [T, H] of each row by both models, and the error behind each layer."""
    before, after = decoder.embed(original, rows), decoder.embed(quantized, rows)
    layers: list[LayerError] = []
    for index in range(len(decoder)):
        entering = [batch.hidden for batch in before]
        alone = [Batch(batch.rows, batch.hidden) for batch in before]
        decoder.advance(index, quantized, [*after, *alone], activations=activations)
        decoder.advance(index, original, before)
        pairs = list(zip(entering, before, strict=True))
        added = sum(float((batch.hidden - hidden).square().sum()) for hidden, batch in pairs)
        own, drift = (_squared_gap(before, others) for others in (alone, after))
        layers.append(LayerError(index, own / added if added else 0.0, drift / added if added else 0.0))
    return _by_row(before, len(rows)), _by_row(after, len(rows)), tuple(layers)


def _squared_gap(left: Sequence[Batch], right: Sequence[Batch]) -> float:
    pairs = zip(left, right, strict=True)
    return sum(float((a.hidden - b.hidden).square().sum()) for a, b in pairs)


def _by_row(batches: Sequence[Batch], count: int) -> "list[Tensor]":
    found = {row: batch.hidden[at] for batch in batches for at, row in enumerate(batch.rows)}
    return [found[index] for index in range(count)]


def check_golden(
    decoder: Decoder,
    source: Source,
    tokenizer: Any,
    golden: GoldenSet | None,
    *,
    tolerance: str,
    activations: Activations | None = None,
) -> GoldenReport:
    """The golden prompts by the model in `source` and the tokenizer beside it; of none, an empty report.

    The recorded answer is fed in whole: up to the first token that differs, that is greedy decoding.
    """
    import torch

    prompts = golden.prompts if golden else ()
    fitting = [p for p in prompts if len(p.prompt_ids) + len(p.token_ids) <= decoder.context]
    if golden is None or not fitting:
        return GoldenReport(
            stage=STAGE, checked=0, breaks=(), max_logprob_gap=0.0, mean_logprob_gap=0.0, flips=0
        )
    rows = [(*prompt.prompt_ids, *prompt.token_ids) for prompt in fitting]
    states = final_states(decoder, source, rows, activations=activations)
    seen: list[Observation] = []
    for prompt, hidden_TH in zip(fitting, states, strict=True):
        answer_TH = hidden_TH[len(prompt.prompt_ids) - 1 :]
        parts = [logits_TV.log_softmax(-1) for _, [logits_TV] in decoder.logits([source], [answer_TH])]
        seen.append(_observe(torch.cat(parts), tokenizer, golden, prompt))
    checked = golden.model_copy(update={"prompts": tuple(fitting)})
    return compare(checked, seen, stage=STAGE, tolerance=TOLERANCES[tolerance])


def final_states(
    decoder: Decoder,
    source: Source,
    rows: Sequence[Sequence[int]],
    *,
    activations: Activations | None = None,
) -> "list[Tensor]":
    """Each row's hidden states [T, H] behind the last layer."""
    import torch

    with torch.no_grad():
        batches = decoder.embed(source, rows)
        for index in range(len(decoder)):
            decoder.advance(index, source, batches, activations=activations)
    return _by_row(batches, len(rows))


def _observe(logprobs_TV: "Tensor", tokenizer: Any, golden: GoldenSet, prompt: GoldenPrompt) -> Observation:
    """What greedy decoding gives, up to the first token that is not the recorded one."""
    rendered = tokenizer.apply_chat_template(
        list(prompt.messages), tokenize=False, add_generation_prompt=True
    )
    greedy: list[int] = logprobs_TV.argmax(-1).tolist()
    taken: list[int] = []
    for position, token in enumerate(greedy[: golden.max_tokens]):
        if token == golden.eos_id:
            break
        taken.append(token)
        if position == len(prompt.token_ids) or token != prompt.token_ids[position]:
            break
    stops = len(taken) < len(greedy) and greedy[len(taken)] == golden.eos_id
    return Observation(
        rendered=rendered,
        prompt_ids=tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"]),
        token_ids=tuple(taken),
        logprobs=tuple(float(logprobs_TV[position, token]) for position, token in enumerate(taken)),
        finish="stop" if stops else "length",
    )
