"""The closed form agrees with an independent evaluation of Balle & Wang's formula."""

import math

import pytest
from scipy.stats import norm

from tacit.accounting import epsilon
from tacit.accounting.gaussian import gaussian_epsilon


def balle_wang_delta(mu, eps):
    return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)


@pytest.mark.parametrize("mu", [1e-3, 0.03, 0.5, 1.0, 4.0, 12.0])
@pytest.mark.parametrize("delta", [1e-8, 1e-5, 1e-2])
def test_epsilon_inverts_balle_wang(mu, delta):
    eps = gaussian_epsilon(mu, delta)
    if eps == 0.0:
        assert balle_wang_delta(mu, 0.0) <= delta
    else:
        assert balle_wang_delta(mu, eps) == pytest.approx(delta, rel=1e-4)


@pytest.mark.parametrize("accountant", ["pld", "prv"])
def test_full_batch_steps_are_one_gaussian(accountant):
    eps = epsilon(noise_multiplier=20.0, sample_rate=1.0, steps=400, delta=1e-5, accountant=accountant)
    assert balle_wang_delta(1.0, eps) == pytest.approx(1e-5, rel=1e-4)


@pytest.mark.parametrize("delta", [1e-300, 1e-30, 1e-12, 0.5, 0.999])
@pytest.mark.parametrize("mu", [1e-12, 1e-6, 1.0, 1e3, 1e160])
def test_extremes_stay_bounds(mu, delta):
    eps = gaussian_epsilon(mu, delta)
    assert 0.0 <= eps <= mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta))
    assert gaussian_epsilon(0.0, delta) == 0.0
