"""A classifier that learned what was rejected: TF-weighted hashed words, logistic regression, cross-fitted.

It learns from decisions that were made already, by reviewers and by the rules before it (votes, gold, checks
and the judge among them), and carries them over to labels that those rules could not tell apart.
"""

from collections.abc import Iterable, Sequence

from decant.errors import DataError, MissingExtraError
from decant_distill.curate_rules import Candidate, Drop, Dropped, Rule, accepted
from decant_distill.curate_texts import Texts, folds, written

FOLDS = 5
LEAST_EACH = 50
# The rules whose judgement is worth learning; what is a duplicate or contaminated may be good.
JUDGES = ("review", "vote", "verified", "vote_share", "confidence", "calibrated", "checks")
_FEATURES = 2**18


def quality_rule(
    texts: Texts, candidates: Sequence[Candidate], dropped: Dropped, *, least: float, seed: int
) -> Rule:
    """Drops what is accepted with a probability below `least`, by a model that never saw its prompt.

    DataError without 50 labels on either side to learn from.
    """
    by_line = {one.line: one for one in candidates}

    def drops(left: Sequence[Candidate]) -> Iterable[Drop]:
        rejected = {line for name in JUDGES for line in dropped.get(name, ())}
        known = [by_line[line] for line in sorted(rejected) if by_line[line].answer is not None]
        kept = {one.line for one in left}
        # What a person accepted is never judged, and teaches.
        kept |= {one.line for one in candidates if one.is_accepted}
        counts = f"{len(kept)} accepted and {len(known)} rejected labels"
        if min(len(kept), len(known)) < LEAST_EACH:
            judged_by = ", ".join(JUDGES)
            raise DataError(
                f"min_quality learns from {LEAST_EACH} labels of each side and found {counts}; "
                f"turn on a rule that rejects ({judged_by}), review more labels, or leave it out"
            )
        chosen = [by_line[line] for line in sorted(kept | {one.line for one in known})]
        scores = _scores(texts, chosen, frozenset(kept), seed=seed)
        for one in left:
            if scores[one.line] < least:
                yield Drop(one.line, f"accepted with probability {scores[one.line]:.2f}")

    return Rule("quality", f"accepted with a probability below {least:g}", drops, spares=accepted)


def _scores(
    texts: Texts, candidates: Sequence[Candidate], kept: frozenset[int], *, seed: int
) -> dict[int, float]:
    """The probability of being accepted by line, from the fits that left out the fold of its prompt."""
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.linear_model import SGDClassifier
    except ImportError:
        raise MissingExtraError("scikit-learn", "curate") from None
    import numpy as np

    fold_of = folds(candidates, FOLDS, seed=seed)
    lines: list[int] = []

    def documents() -> Iterable[str]:
        for line, label in texts.of(fold_of):
            lines.append(line)
            yield f"{label.question}\n{written(label)}"

    vectorizer = HashingVectorizer(n_features=_FEATURES, ngram_range=(1, 2), alternate_sign=False)
    features = vectorizer.transform(documents())
    right = np.array([line in kept for line in lines])
    fold = np.array([fold_of[line] for line in lines])
    scores = np.empty(len(lines))
    for held in range(FOLDS):
        is_held = fold == held
        if not is_held.any():
            continue
        model = SGDClassifier(
            loss="log_loss", alpha=1e-6, max_iter=20, tol=1e-3, class_weight="balanced", random_state=seed
        )
        model.fit(features[~is_held], right[~is_held])
        scores[is_held] = model.predict_proba(features[is_held])[:, 1]
    return dict(zip(lines, scores.tolist(), strict=True))
