"""Whether a loss is shown to be within what is allowed: the whole 95 % interval has to lie inside."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from decant.stats import non_inferior
from decant_quant.quantize_config import parse_loss
from decant_quant.task_check import Answered, compare


@dataclass(frozen=True, slots=True)
class Verdict:
    """Taken or not, why, and the numbers behind it."""

    accepted: bool
    reason: str
    numbers: Mapping[str, Any] = field(default_factory=dict[str, Any])


def judge_task(before: Answered, after: Answered, max_loss: str | None) -> Verdict:
    """By the task's accuracy, paired request by request (Tango's score interval)."""
    found = compare(before, after)
    loss, low, high = (-100 * value for value in (found.mean, found.interval.high, found.interval.low))
    numbers = {
        "accuracy_unquantized": before.accuracy,
        "accuracy": after.accuracy,
        "n": found.n,
        "gained": found.gained,
        "lost": found.lost,
        "loss_pt": loss,
        "loss_pt_low": low,
        "loss_pt_high": high,
        "p_value": found.p_value,
    }
    said = (
        f"task accuracy {after.accuracy:.1%} (was {before.accuracy:.1%}), loss {loss:+.2f} pt with a 95 %"
        f" interval of {low:+.2f} to {high:+.2f} on {found.n} rows"
    )
    if max_loss is None:
        return Verdict(accepted=True, reason=said, numbers=numbers)
    allowed, _ = parse_loss(max_loss)
    if non_inferior(found, allowed / 100):
        return Verdict(accepted=True, reason=f"{said}: within {max_loss}", numbers=numbers)
    why = f"more than {max_loss}" if loss > allowed else f"{max_loss} is not shown, more rows may show it"
    return Verdict(accepted=False, reason=f"{said}: {why}", numbers=numbers)


def judge_heldout(quality: Mapping[str, Any] | None, max_loss: str | None) -> Verdict:
    """By the held-out rows: mean divergence for nats, disagreement on the top token for points."""
    if max_loss is None or quality is None:
        return Verdict(accepted=True, reason="loads and fits; no loss was bounded")
    allowed, unit = parse_loss(max_loss)
    if unit == "nats":
        value, high = quality["kl_mean"], quality["kl_mean_high"]
        said = f"mean KL {value:.3g} nats, at most {high:.3g} with 95 % confidence, on {quality['rows']} rows"
    else:
        value, high = 100 * (1 - quality["top1_agreement"]), 100 * (1 - quality["top1_agreement_low"])
        said = (
            f"other top token at {value:.2f} % of {quality['tokens']} tokens, at most {high:.2f} % with 95 %"
            f" confidence (no evaluation rows, so points are of agreement)"
        )
    accepted = high <= allowed
    verdict = "within" if accepted else "more than" if value > allowed else "not shown to be within"
    return Verdict(accepted=accepted, reason=f"{said}: {verdict} {max_loss}")
