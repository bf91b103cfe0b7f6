import math
from collections import Counter

import dp_accounting
import pytest
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from dp_accounting.rdp import RdpAccountant
from scipy.stats import chisquare, geom, poisson

from tacit.accounting import (
    EpochRelease,
    PoissonRelease,
    combined,
    create_accountant,
    epsilon,
    number_of_runs,
    search,
    search_epsilon,
)
from tacit.accounting.rdp import ORDERS
from tacit.errors import ConfigurationError

RUN = [(PoissonRelease(1.1, 0.01), 1000)]


@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("mean", [1.5, 10.0, 100.0])
def test_agrees_with_dp_accounting(mean, shape):
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(1.1)), 1000
    )
    peer = RdpAccountant(list(ORDERS)).compose(RepeatAndSelectDpEvent(event, mean, shape))
    found = search_epsilon(RUN, 1e-5, mean_runs=mean, shape=shape)
    assert found == pytest.approx(peer.get_epsilon(1e-5), rel=1e-6)
    assert found >= peer.get_epsilon(1e-5) * (1 - 1e-9)


def test_the_best_of_a_hundred_costs_less_than_four_and_more_than_one():
    once = epsilon(noise_multiplier=1.1, sample_rate=0.01, steps=1000, delta=1e-5, accountant="rdp")
    assert once < search_epsilon(RUN, 1e-5, mean_runs=1.5) < search_epsilon(RUN, 1e-5, mean_runs=100) < 4 * once


def test_without_noise_or_without_releases():
    assert search_epsilon([(PoissonRelease(0.0, 0.5), 1)], 1e-5, mean_runs=5) == math.inf
    assert search_epsilon([], 1e-5, mean_runs=5) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean_runs": 1.0}, "more than one run"),
        ({"mean_runs": 0.5, "shape": math.inf}, "more than one run"),
        ({"mean_runs": math.inf}, "mean_runs"),
        ({"mean_runs": 5, "shape": -1}, "shape is -1"),
        ({"mean_runs": 5, "shape": math.nan}, "shape is nan"),
    ],
)
def test_values_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        search_epsilon(RUN, 1e-5, **arguments)
    with pytest.raises(ConfigurationError, match=message):
        number_of_runs(**arguments)


@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, 4.0, math.inf])
def test_runs_are_drawn_from_the_distribution_that_is_accounted_for(monkeypatch, shape):
    """Every 1/20000-quantile is drawn once: the mean, and for known families each probability, must come out."""
    quantiles = 20_000
    numbers = iter(range(quantiles))
    monkeypatch.setattr(search.secrets, "randbits", lambda bits: int((next(numbers) + 0.5) * 2**bits / quantiles))
    runs = Counter(number_of_runs(mean_runs=6.0, shape=shape) for _ in range(quantiles))
    assert sum(k * n for k, n in runs.items()) / quantiles == pytest.approx(6.0, rel=0.01)
    assert (0 in runs) == math.isinf(shape)
    family = {1.0: geom(1 / 6.0), math.inf: poisson(6.0)}.get(shape)
    if family is not None:
        assert all(abs(runs[k] - quantiles * family.pmf(k)) <= 1 for k in range(30))


def test_runs_are_drawn_at_random():
    """A chi-square test that fails a right generator with a probability of 1e-9."""
    drawn = Counter(min(number_of_runs(mean_runs=3.0), 12) for _ in range(3000))
    expected = [*(3000 * geom(1 / 3).pmf(k) for k in range(1, 12)), 3000 * geom(1 / 3).sf(11)]
    assert chisquare([drawn[k] for k in range(1, 13)], expected).pvalue > 1e-9


def test_accountants_combine():
    one, other = create_accountant("pld"), create_accountant("pld")
    one.record(PoissonRelease(1.0, 0.01), 500)
    other.record(PoissonRelease(1.0, 0.01), 500)
    whole = combined([one, other])
    assert whole.history == ((PoissonRelease(1.0, 0.01), 1000),)
    assert whole.get_epsilon(1e-5) == epsilon(noise_multiplier=1.0, sample_rate=0.01, steps=1000, delta=1e-5)
    assert (one.steps, other.steps) == (500, 500)


def test_passes_of_different_engines_are_different_passes():
    several = []
    for _ in range(3):
        accountant = create_accountant("pld")
        accountant.record(EpochRelease(2.0, 1), 4)
        accountant.record(EpochRelease(2.0, 2), 4)
        several.append(accountant)
    whole = combined(several)
    assert len({release.epoch for release, _ in whole.history}) == 6
    assert whole.get_epsilon(1e-5) > several[0].get_epsilon(1e-5)


def test_what_cannot_be_combined():
    with pytest.raises(ConfigurationError, match="no accountant to combine"):
        combined([])
    with pytest.raises(ConfigurationError, match="use one adjacency"):
        combined([create_accountant("pld", "replace-one"), create_accountant("pld", "zero-out-one")])
