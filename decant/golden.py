"""The parity guard: golden prompts that the training side records and every later stage must reproduce.

A stage is compared prompt by prompt and the first difference names the kind of break: the rendered text
(template), its token ids (tokenizer), where the answer ends (eos), or the greedy tokens and their log
probabilities (weights). Where two tokens were almost equally likely, taking the other one is no break.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from decant.errors import ParityError

BreakKind = Literal["template", "tokenizer", "eos", "weights"]
Finish = Literal["stop", "length"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Observation(_Frozen):
    """What an engine gives for one golden prompt, decoded greedily; `rendered` is None if it cannot tell.

    `token_ids` and `logprobs` (natural log, of the tokens taken) leave the end token out.
    """

    rendered: str | None
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish


class GoldenPrompt(_Frozen):
    """One prompt with the training side's greedy answer; `margins` are top-1 minus top-2 log probability.

    A prompt that stops has one margin more than it has tokens: the last is the end token's.
    """

    messages: tuple[dict[str, str], ...]
    rendered: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    margins: tuple[float, ...]
    finish: Finish

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if len(self.logprobs) != len(self.token_ids):
            raise ValueError("one log probability per token")
        if len(self.margins) != len(self.token_ids) + (self.finish == "stop"):
            raise ValueError("one margin per token, and one for the end token of an answer that stops")
        return self


class GoldenSet(_Frozen):
    """The golden prompts of one trained model, with the stage that recorded them."""

    stage: str
    eos_id: int
    max_tokens: int
    prompts: tuple[GoldenPrompt, ...]


class Tolerance(_Frozen):
    """How far a faithful stage may drift, in nats.

    `near_tie` is the margin below which another greedy token is a coin toss; `mean_logprob_gap` bounds the
    mean difference over all tokens that both sides took.
    """

    near_tie: float
    mean_logprob_gap: float
    max_logprob_gap: float


TOLERANCES: Mapping[str, Tolerance] = {
    "exact": Tolerance(near_tie=1e-3, mean_logprob_gap=1e-3, max_logprob_gap=1e-2),
    "bf16": Tolerance(near_tie=0.3, mean_logprob_gap=0.05, max_logprob_gap=1.0),
    "q8": Tolerance(near_tie=0.5, mean_logprob_gap=0.1, max_logprob_gap=1.5),
    "q4": Tolerance(near_tie=2.0, mean_logprob_gap=0.4, max_logprob_gap=4.0),
}


class GoldenBreak(_Frozen):
    """One golden prompt that a stage does not reproduce, and what is to blame."""

    stage: str
    kind: BreakKind
    prompt_index: int
    detail: str


class GoldenReport(_Frozen):
    """The outcome of one check; gaps are absolute log-probability differences in nats."""

    stage: str
    checked: int
    breaks: tuple[GoldenBreak, ...]
    max_logprob_gap: float
    mean_logprob_gap: float
    flips: int

    @property
    def ok(self) -> bool:
        """Whether the stage reproduces every golden prompt within its tolerance."""
        return not self.breaks

    def raise_if_broken(self) -> None:
        """Raises ParityError that names the stage, the kind of break and the first prompt it shows on."""
        if self.breaks:
            first = self.breaks[0]
            count = f"{len(self.breaks)} of {self.checked} golden prompts"
            raise ParityError(
                f"stage {first.stage}: {first.kind} broken on {count}"
                f" (prompt {first.prompt_index}: {first.detail}); {_REMEDIES[first.kind]}"
            )


_REMEDIES: Mapping[BreakKind, str] = {
    "template": "serve it with the chat template it was trained with",
    "tokenizer": "copy the tokenizer files of the trained model, unchanged",
    "eos": "restore the end token in generation_config.json or the GGUF metadata",
    "weights": "export the checkpoint again and compare its tensors with the parent's",
}
_SEVERITY: tuple[BreakKind, ...] = ("template", "tokenizer", "eos", "weights")


def compare(
    golden: GoldenSet, observations: Sequence[Observation], *, stage: str, tolerance: Tolerance
) -> GoldenReport:
    """Compares a stage's observations with the golden set, prompt by prompt in the same order."""
    assert len(observations) == len(golden.prompts), "one observation per golden prompt"
    gaps: list[float] = []
    breaks: list[GoldenBreak] = []
    flips = 0
    for index, (prompt, seen) in enumerate(zip(golden.prompts, observations, strict=True)):
        shared = _shared_prefix(prompt.token_ids, seen.token_ids)
        flips += shared < max(len(prompt.token_ids), len(seen.token_ids)) or prompt.finish != seen.finish
        if prompt.prompt_ids == seen.prompt_ids:
            gaps += [
                abs(a - b) for a, b in zip(prompt.logprobs[:shared], seen.logprobs[:shared], strict=True)
            ]
        found = _first_difference(golden, prompt, seen, shared, tolerance)
        if found:
            breaks.append(GoldenBreak(stage=stage, kind=found[0], prompt_index=index, detail=found[1]))
    mean_gap = sum(gaps) / len(gaps) if gaps else 0.0
    if not breaks and not gaps and any(prompt.token_ids for prompt in golden.prompts):
        detail = "no prompt's first token is the recorded one"
        breaks.append(GoldenBreak(stage=stage, kind="weights", prompt_index=0, detail=detail))
    if not breaks and mean_gap > tolerance.mean_logprob_gap:
        detail = f"mean log-probability gap {mean_gap:.3f} nats, allowed {tolerance.mean_logprob_gap}"
        breaks.append(GoldenBreak(stage=stage, kind="weights", prompt_index=0, detail=detail))
    breaks.sort(key=lambda item: (_SEVERITY.index(item.kind), item.prompt_index))
    return GoldenReport(
        stage=stage,
        checked=len(golden.prompts),
        breaks=tuple(breaks),
        max_logprob_gap=max(gaps, default=0.0),
        mean_logprob_gap=mean_gap,
        flips=flips,
    )


def _first_difference(
    golden: GoldenSet, prompt: GoldenPrompt, seen: Observation, shared: int, tolerance: Tolerance
) -> tuple[BreakKind, str] | None:
    if seen.rendered is not None and seen.rendered != prompt.rendered:
        return "template", f"rendered {_around(prompt.rendered, seen.rendered)}"
    if seen.prompt_ids != prompt.prompt_ids:
        return "tokenizer", f"prompt ids {_around_ids(prompt.prompt_ids, seen.prompt_ids)}"
    ended = _end_difference(golden, prompt, seen, shared, tolerance)
    if ended:
        return "eos", ended
    if (
        shared < min(len(prompt.token_ids), len(seen.token_ids))
        and prompt.margins[shared] > tolerance.near_tie
    ):
        took, expected = seen.token_ids[shared], prompt.token_ids[shared]
        return "weights", f"token {shared} is {took}, was {expected} by {prompt.margins[shared]:.2f} nats"
    for position, (a, b) in enumerate(zip(prompt.logprobs[:shared], seen.logprobs[:shared], strict=True)):
        if abs(a - b) > tolerance.max_logprob_gap:
            return "weights", f"token {position} has log probability {b:.2f}, had {a:.2f}"
    return None


def _end_difference(
    golden: GoldenSet, prompt: GoldenPrompt, seen: Observation, shared: int, tolerance: Tolerance
) -> str | None:
    """An answer that ran on past its end, or stopped short of it, where the end was not in doubt."""
    sure = shared < len(prompt.margins) and prompt.margins[shared] > tolerance.near_tie
    ran_on = prompt.finish == "stop" and shared == len(prompt.token_ids) and len(seen.token_ids) > shared
    at_limit = len(prompt.token_ids) == golden.max_tokens and prompt.finish == "length"
    cut_short = shared == len(seen.token_ids) < len(prompt.token_ids) and seen.finish == "stop"
    lost_end = prompt.finish == "stop" and seen.finish == "length" and seen.token_ids == prompt.token_ids
    if ran_on and sure:
        return f"does not stop at end token {golden.eos_id} after {shared} tokens"
    if lost_end and sure and not at_limit:
        return f"does not report the end token {golden.eos_id}"
    if cut_short and sure:
        return f"stops after {shared} tokens, the answer has {len(prompt.token_ids)}"
    return None


def _shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


def _around(expected: str, seen: str) -> str:
    at = _shared_prefix([ord(c) for c in expected], [ord(c) for c in seen])
    return f"{seen[max(at - 10, 0) : at + 20]!r}, was {expected[max(at - 10, 0) : at + 20]!r}"


def _around_ids(expected: Sequence[int], seen: Sequence[int]) -> str:
    at = _shared_prefix(expected, seen)
    return f"differ from position {at}: {list(seen[at : at + 6])}, were {list(expected[at : at + 6])}"
