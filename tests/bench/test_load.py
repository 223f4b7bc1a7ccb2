import pytest

from decant_bench.load import arrival_offsets_s, gamma_offsets_s, ramp_offsets_s, within


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


def gaps_of(offsets: tuple[float, ...]) -> list[float]:
    return [b - a for a, b in zip((0.0, *offsets), offsets, strict=False)]


@pytest.mark.parametrize("shape", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_burstiness_that_was_asked_for(shape: float) -> None:
    gaps = gaps_of(gamma_offsets_s(n=40_000, rate=10.0, shape=shape, seed=1))
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5

    assert mean == pytest.approx(0.1, rel=0.05)
    assert spread / mean == pytest.approx(shape**-0.5, rel=0.05)


@pytest.mark.parametrize(("rate", "rate_end"), [(2.0, 30.0), (30.0, 2.0), (10.0, 10.0)])
def test_a_ramp_goes_in_a_straight_line_from_rate_to_rate(rate: float, rate_end: float) -> None:
    offsets = ramp_offsets_s(rate=rate, rate_end=rate_end, duration_s=1000.0, seed=2)
    first = sum(at < 250 for at in offsets) / 250
    last = sum(at >= 750 for at in offsets) / 250

    assert first == pytest.approx(rate + (rate_end - rate) / 8, rel=0.08)
    assert last == pytest.approx(rate_end - (rate_end - rate) / 8, rel=0.08)
    assert list(offsets) == sorted(offsets)


def test_only_what_is_due_within_the_duration_is_kept() -> None:
    assert within((0.0, 0.9, 1.0, 1.1), 1.0) == (0.0, 0.9)
    assert within((0.0, 2.0), None) == (0.0, 2.0)
