"""Calibrates a job's labels on those that have gold, and says what that did to the error."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from decant.task import normal_answer, same_answer
from decant_distill.calibration import FOLDS, Calibrator, Judged, Method, Signals, why_not
from decant_distill.label_votes import count_votes
from decant_distill.labels import Label


@dataclass(frozen=True, slots=True)
class Rater:
    """Gives each label its calibrated confidence; a hinted one has none, for it was no guess."""

    calibrator: Calibrator

    def __call__(self, labels: list[Label]) -> list[Label]:
        """The labels of one row."""
        return [
            label
            if (signals := found) is None
            else replace(label, confidence=self.calibrator.confidence(signals, _fold_of(label)))
            for label, found in zip(labels, _signals(labels), strict=True)
        ]


def calibrate(rows: Iterable[list[Label]], method: Method) -> tuple[Rater | None, dict[str, Any]]:
    """What rates the labels, and the summary's entry; None with the reason where gold does not suffice."""
    judged = [
        Judged(signals, same_answer(label.answer, label.gold), fold)
        for labels in rows
        for label, signals in zip(labels, _signals(labels), strict=True)
        if signals is not None
        and label.answer is not None
        and label.gold is not None
        and (fold := _fold_of(label)) is not None
    ]
    if (reason := why_not(judged)) is not None:
        return None, {"method": method, "labels": len(judged), "skipped": reason}
    calibrator = Calibrator(judged, method)
    return Rater(calibrator), asdict(calibrator.report)


def _signals(labels: list[Label]) -> list[Signals | None]:
    """The signals of a row's labels, None for those without an answer of the teacher's own."""
    votes = count_votes(label.answer for label in labels if not label.hinted)
    drawn = sum(not label.hinted for label in labels)
    return [
        None
        if label.answer is None or label.hinted
        else Signals(votes[normal_answer(label.answer)], drawn, label.logprob, label.judge)
        for label in labels
    ]


def _fold_of(label: Label) -> int | None:
    """The fold of a row with gold: one for all samples of a prompt, wherever it stands."""
    if label.gold is None:
        return None
    digest = hashlib.blake2b(label.question.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) % FOLDS
