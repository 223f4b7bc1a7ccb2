import pytest

from decant_bench.load import arrival_offsets_s


def test_constant_arrivals_are_evenly_spaced_from_zero() -> None:
    assert arrival_offsets_s("constant", n=4, rate=8.0, seed=0) == (0.0, 0.125, 0.25, 0.375)


def test_the_same_seed_gives_the_same_arrivals_and_another_seed_others() -> None:
    first = arrival_offsets_s("poisson", n=50, rate=5.0, seed=3)

    assert arrival_offsets_s("poisson", n=50, rate=5.0, seed=3) == first
    assert arrival_offsets_s("poisson", n=50, rate=5.0, seed=4) != first


def test_a_shorter_replay_is_the_beginning_of_a_longer_one() -> None:
    longer = arrival_offsets_s("poisson", n=100, rate=5.0, seed=3)

    assert arrival_offsets_s("poisson", n=30, rate=5.0, seed=3) == longer[:30]


def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() -> None:
    offsets = arrival_offsets_s("poisson", n=20_000, rate=4.0, seed=1)
    gaps = [b - a for a, b in zip((0.0, *offsets), offsets, strict=False)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5

    assert mean == pytest.approx(0.25, rel=0.03)
    assert spread == pytest.approx(0.25, rel=0.03)
