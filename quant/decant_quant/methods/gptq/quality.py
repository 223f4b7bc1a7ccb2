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
from decant_quant.methods.calibration import TokenRow
from decant_quant.methods.gptq.decoder import Decoder, Source

if TYPE_CHECKING:
    from torch import Tensor

STAGE = "quantized"
_TOLERANCE = {4: "q4", 8: "q8"}


@dataclass(frozen=True, slots=True)
class Quality:
    """Held-out loss of a quantized model; `tokens` were scored, those of the answers where rows have one."""

    rows: int
    tokens: int
    perplexity_unquantized: float
    perplexity: float
    kl_mean: float
    kl_p99: float
    kl_max: float
    top1_agreement: float

    def sentence(self) -> str:
        """The numbers in one line."""
        return (
            f"against the unquantized model on {self.tokens} tokens of {self.rows} held-out rows: perplexity"
            f" {self.perplexity:.4g} (was {self.perplexity_unquantized:.4g}), KL mean {self.kl_mean:.3g},"
            f" p99 {self.kl_p99:.3g}, max {self.kl_max:.3g} nats, same top token {self.top1_agreement:.2%}"
        )


def measure(decoder: Decoder, *, original: Source, quantized: Source, heldout: Sequence[TokenRow]) -> Quality:
    """Perplexity, divergence and top-1 agreement; QuantizeError when the quantized model gives no numbers."""
    import torch

    rows = [row.token_ids for row in heldout]
    first, second = (final_states(decoder, source, rows) for source in (original, quantized))
    spans = [slice(row.answer_start - 1, len(row.token_ids) - 1) for row in heldout]
    targets_N = torch.cat([torch.tensor(row.token_ids[row.answer_start :]) for row in heldout])
    states = [torch.cat([h[s] for h, s in zip(h_TH, spans, strict=True)]) for h_TH in (first, second)]
    kl, loss_before, loss_after = [], [], []
    same = 0
    for part, (before_TV, after_TV) in decoder.logits((original, quantized), states):
        p_TV, q_TV = before_TV.log_softmax(-1), after_TV.log_softmax(-1)
        kl.append((p_TV.exp() * (p_TV - q_TV)).sum(-1).clamp_(min=0))
        target_T1 = targets_N[part].unsqueeze(1).to(p_TV.device)
        loss_before.append(-p_TV.gather(1, target_T1))
        loss_after.append(-q_TV.gather(1, target_T1))
        same += int((before_TV.argmax(-1) == after_TV.argmax(-1)).sum())
    kl_N = torch.cat(kl).double()
    if not torch.isfinite(kl_N).all():
        raise QuantizeError("the quantized model's answers are not finite; calibrate on other rows")
    return Quality(
        rows=len(heldout),
        tokens=len(kl_N),
        perplexity_unquantized=math.exp(float(torch.cat(loss_before).double().mean())),
        perplexity=math.exp(float(torch.cat(loss_after).double().mean())),
        kl_mean=float(kl_N.mean()),
        kl_p99=float(kl_N.quantile(0.99)),
        kl_max=float(kl_N.max()),
        top1_agreement=same / len(kl_N),
    )


def check_golden(
    decoder: Decoder, source: Source, tokenizer: Any, golden: GoldenSet | None, *, bits: int
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
    states = final_states(decoder, source, rows)
    seen: list[Observation] = []
    for prompt, hidden_TH in zip(fitting, states, strict=True):
        answer_TH = hidden_TH[len(prompt.prompt_ids) - 1 :]
        parts = [logits_TV.log_softmax(-1) for _, [logits_TV] in decoder.logits([source], [answer_TH])]
        seen.append(_observe(torch.cat(parts), tokenizer, golden, prompt))
    checked = golden.model_copy(update={"prompts": tuple(fitting)})
    return compare(checked, seen, stage=STAGE, tolerance=TOLERANCES[_TOLERANCE[bits]])


def final_states(decoder: Decoder, source: Source, rows: Sequence[Sequence[int]]) -> "list[Tensor]":
    """Each row's hidden states [T, H] behind the last layer."""
    import torch

    with torch.no_grad():
        batches = decoder.embed(source, rows)
        for index in range(len(decoder)):
            decoder.advance(index, source, batches)
    by_row = {row: batch.hidden[at] for batch in batches for at, row in enumerate(batch.rows)}
    return [by_row[index] for index in range(len(rows))]


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
