import math
from typing import Any

import numpy as np
import pytest

from decant.stats import (
    Interval,
    bootstrap_percentile,
    interval_of,
    least_n,
    mcnemar_exact,
    non_inferior,
    paired_difference,
    percentile_draws,
    wilson,
)

scipy_stats: Any = pytest.importorskip("scipy.stats")
scipy_optimize: Any = pytest.importorskip("scipy.optimize")


def outcomes(both: int, gained: int, lost: int, neither: int) -> tuple[list[int], list[int]]:
    pairs = [(1, 1)] * both + [(0, 1)] * gained + [(1, 0)] * lost + [(0, 0)] * neither
    return [a for a, _ in pairs], [b for _, b in pairs]


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (1, 20), (8, 10), (20, 20), (377, 500)])
def test_wilson_agrees_with_scipy(successes: int, n: int) -> None:
    theirs = scipy_stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    ours = wilson(successes, n)
    assert (ours.low, ours.high) == (
        pytest.approx(theirs.low, abs=1e-12),
        pytest.approx(theirs.high, abs=1e-12),
    )


def test_wilson_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == Interval(0.0, 1.0)


@pytest.mark.parametrize(("b", "c"), [(0, 1), (1, 7), (5, 5), (12, 30), (400, 350)])
def test_mcnemar_is_the_exact_sign_test(b: int, c: int) -> None:
    assert mcnemar_exact(b, c) == pytest.approx(scipy_stats.binomtest(b, b + c).pvalue, rel=1e-9)


def test_mcnemar_of_no_discordant_pair_is_one() -> None:
    assert mcnemar_exact(0, 0) == 1.0


def test_difference_of_right_and_wrong_counts_both_ways() -> None:
    difference = paired_difference(*outcomes(50, 3, 9, 38), seed=0)
    assert (difference.mean, difference.n, difference.gained, difference.lost) == (-0.06, 100, 3, 9)
    assert difference.p_value == mcnemar_exact(3, 9)


def tango_limits(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Tango's limits from the likelihood itself, maximised numerically instead of by its closed form."""

    def score(delta: float) -> float:
        low, high = max(0.0, -delta), (1 - delta) / 2

        def negative_log_likelihood(p_lost: float) -> float:
            p_gained, p_same = p_lost + delta, 1 - 2 * p_lost - delta
            cells = ((gained, p_gained), (lost, p_lost), (n - gained - lost, p_same))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

        best = scipy_optimize.minimize_scalar(
            negative_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-13}
        ).x
        return (gained - lost - n * delta) / math.sqrt(n * (2 * best + delta * (1 - delta)))

    z, estimate = scipy_stats.norm.ppf(0.975), (gained - lost) / n

    def above(delta: float) -> float:
        return score(delta) - z

    def below(delta: float) -> float:
        return score(delta) + z

    solve = scipy_optimize.brentq
    return solve(above, -1 + 1e-6, estimate - 1e-9), solve(below, estimate + 1e-9, 1 - 1e-6)


@pytest.mark.parametrize(("gained", "lost", "n"), [(3, 9, 100), (1, 0, 50), (20, 4, 60), (40, 45, 500)])
def test_score_interval_solves_the_likelihood_equations(gained: int, lost: int, n: int) -> None:
    interval = paired_difference(*outcomes(n - gained - lost, gained, lost, 0), seed=0).interval
    assert (interval.low, interval.high) == pytest.approx(tango_limits(gained, lost, n), abs=1e-5)


def test_identical_stages_still_have_an_interval_of_some_width() -> None:
    interval = paired_difference([1] * 50, [1] * 50, seed=0).interval
    # With no discordant pair the score equation is n d = z sqrt(n d (1 - d)).
    z2 = scipy_stats.norm.ppf(0.975) ** 2
    assert (interval.low, interval.high) == (pytest.approx(-z2 / (50 + z2)), pytest.approx(z2 / (50 + z2)))


def test_score_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    counts = rng.multinomial(200, (0.03, 0.05, 0.92), size=2000)
    covered = 0
    for gained, lost, same in counts:
        interval = paired_difference(*outcomes(same, gained, lost, 0), seed=0).interval
        covered += interval.low <= -0.02 <= interval.high
    assert 0.94 <= covered / len(counts) <= 0.97


def test_difference_of_measurements_agrees_with_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(3)
    a = rng.exponential(1.0, 120)
    b = a + rng.normal(0.1, 0.3, 120)
    ours = paired_difference(a.tolist(), b.tolist(), seed=1, resamples=20_000)
    theirs = scipy_stats.bootstrap(
        (b - a,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (ours.method, ours.p_value) == ("bootstrap", None)
    assert (ours.interval.low, ours.interval.high) == pytest.approx((theirs.low, theirs.high), abs=3e-3)


def test_the_same_seed_gives_the_same_interval() -> None:
    a, b = np.random.default_rng(0).random((2, 30)).tolist()
    assert paired_difference(a, b, seed=5) == paired_difference(a, b, seed=5)
    assert paired_difference(a, b, seed=5).interval != paired_difference(a, b, seed=6).interval


@pytest.mark.parametrize(("a", "b"), [([], []), ([1], [1, 0])])
def test_unpaired_outcomes_are_refused(a: list[int], b: list[int]) -> None:
    with pytest.raises(ValueError, match="paired outcomes"):
        paired_difference(a, b, seed=0)


def test_non_inferior_needs_the_whole_interval_above_the_margin() -> None:
    difference = paired_difference(*outcomes(480, 5, 8, 7), seed=0)
    assert -0.03 < difference.interval.low < -0.01 < difference.mean
    assert non_inferior(difference, 0.03)
    assert not non_inferior(difference, 0.01)


def test_percentile_interval_holds_the_true_percentile() -> None:
    values = np.random.default_rng(0).exponential(1.0, 2000).tolist()
    interval = bootstrap_percentile(values, 95, seed=0)
    assert interval.low < -math.log(0.05) < interval.high < interval.low + 0.6


def test_percentile_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).exponential(1.0, 300)
    ours = bootstrap_percentile(values.tolist(), 50, seed=1, resamples=20_000)
    theirs = scipy_stats.bootstrap(
        (values,), np.median, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_draws_of_single_values_give_the_plain_bootstrap_interval() -> None:
    values = np.random.default_rng(1).exponential(1.0, 300).tolist()
    plain = bootstrap_percentile(values, 90, seed=1, resamples=8000)
    drawn = interval_of(percentile_draws(values, [90], seed=2, resamples=8000)[:, 0])
    assert (drawn.low, drawn.high) == pytest.approx((plain.low, plain.high), rel=0.05)


def test_values_that_go_together_are_drawn_together() -> None:
    # Forty blocks of equal values hold no more than forty values, however many copies there are.
    levels = np.random.default_rng(3).exponential(1.0, 40)
    copies, blocks = np.repeat(levels, 25), np.repeat(np.arange(40), 25)
    together = interval_of(percentile_draws(copies.tolist(), [50], blocks=blocks.tolist(), seed=0)[:, 0])
    alone = interval_of(percentile_draws(copies.tolist(), [50], seed=0)[:, 0])
    honest = interval_of(percentile_draws(levels.tolist(), [50], seed=0)[:, 0])
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert together.high - together.low == pytest.approx(honest.high - honest.low, rel=0.25)


def test_the_same_seed_gives_the_same_draws() -> None:
    first = percentile_draws([3.0, 1.0, 2.0], [50, 95], seed=5)
    assert (first == percentile_draws([3.0, 1.0, 2.0], [50, 95], seed=5)).all()


def test_a_tail_needs_a_sample_that_reaches_beyond_it() -> None:
    assert [least_n(q) for q in (50, 95, 99, 99.9)] == [6, 72, 368, 3688]
    # Below that, the largest of n values lies under the percentile in more than 2.5 of 100 samples.
    assert 0.99**368 <= 0.025 < 0.99**367
