"""No test of whether a record was in the data does better than the bound."""

import math

import pytest
from scipy.stats import norm

from tacit.accounting import EpochRelease, PoissonRelease, epsilon
from tacit.accounting.tradeoff import gaussian_mu, trade_off
from tacit.errors import ConfigurationError

RATES = (1e-5, 1e-3, 0.1, 0.5, 0.9)


@pytest.mark.parametrize("noise", [0.5, 1.0, 10.0])
def test_gaussians_are_bounded_tightly(noise: float) -> None:
    """The best test of N(0, σ²) against N(1, σ²) is known (Neyman and Pearson)."""
    found = trade_off([(PoissonRelease(noise, 1.0), 1)])
    for rate in RATES:
        truth = norm.cdf(norm.ppf(rate) + 1 / noise)
        assert truth <= found.true_positive_rate(rate) <= truth * 1.01 + 1e-9


@pytest.mark.parametrize("history", [[(PoissonRelease(1.0, 0.01), 500)], [(PoissonRelease(0.8, 0.3), 20)]])
def test_the_likelihood_ratio_test_of_one_step_stays_below(history: list[tuple[PoissonRelease, int]]) -> None:
    """A test that looks at the first step alone is a test of the whole."""
    release, _ = history[0]
    found = trade_off(history)
    for rate in RATES:
        x = norm.isf(rate, scale=release.noise_multiplier)
        alone = (1 - release.sample_rate) * rate + release.sample_rate * norm.sf(x - 1, scale=release.noise_multiplier)
        assert alone <= found.true_positive_rate(rate) <= 1.0
    rates = [found.true_positive_rate(rate) for rate in RATES]
    assert rates == sorted(rates)
    assert [tpr for _, tpr in found.curve(RATES)] == rates


def test_where_floats_cannot_carry_it_rdp_bounds_it():
    found = trade_off([(PoissonRelease(0.02, 0.5), 3)])
    assert found.true_positive_rate(1e-3) == pytest.approx(1.0, abs=1e-6)


def test_nothing_released_and_nothing_hidden():
    assert trade_off([]).true_positive_rate(0.1) == pytest.approx(0.1)
    assert trade_off([(EpochRelease(0.0, 1), 1)]).true_positive_rate(0.1) == 1.0


def test_mu_of_a_gaussian_is_its_own():
    assert gaussian_mu(epsilon(noise_multiplier=0.5, sample_rate=1.0, steps=1, delta=1e-6), 1e-6) == pytest.approx(2.0)
    assert gaussian_mu(0.0, 1e-6) == 0.0
    assert gaussian_mu(math.inf, 1e-6) == math.inf


def test_wrong_arguments():
    with pytest.raises(ConfigurationError, match="at least one"):
        trade_off([], [])
    with pytest.raises(ConfigurationError, match="false_positive_rate"):
        trade_off([]).true_positive_rate(0.0)
