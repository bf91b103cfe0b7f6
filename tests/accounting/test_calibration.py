"""The noise multiplier found keeps to the target, and barely."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.accounting import (
    EpochRelease,
    PoissonRelease,
    calibrate,
    create_accountant,
    epsilon,
    noise_multiplier,
)
from tacit.accounting.calibration import chi_square
from tacit.errors import ConfigurationError

PLAN = {"target_epsilon": 3.0, "target_delta": 1e-4, "sample_rate": 0.035, "steps": 840}


def check(target, delta, rate, steps, accountant="pld"):
    found = noise_multiplier(
        target_epsilon=target, target_delta=delta, sample_rate=rate, steps=steps, accountant=accountant
    )
    spent = epsilon(noise_multiplier=found, sample_rate=rate, steps=steps, delta=delta, accountant=accountant)
    assert target * (1 - 1e-3) <= spent <= target


@pytest.mark.parametrize("target", [0.01, 0.1, 1.0, 3.0, 10.0, 100.0])
@pytest.mark.parametrize(("rate", "steps"), [(0.004, 1000), (0.035, 840), (0.5, 10), (1.0, 100), (0.05, 1)])
def test_round_trip(target, rate, steps):
    check(target, 1e-5, rate, steps)


@pytest.mark.parametrize("target", [0.01, 1.0, 100.0])
def test_round_trip_rdp(target):
    check(target, 1e-5, 0.035, 840, "rdp")


@settings(max_examples=10, deadline=None)
@given(
    target=st.floats(0.05, 30.0),
    delta=st.sampled_from([1e-4, 1e-6]),
    rate=st.floats(0.005, 1.0),
    steps=st.integers(2, 3000),
)
def test_round_trip_anywhere(target, delta, rate, steps):
    check(target, delta, rate, steps)


def test_known_noise():
    assert noise_multiplier(**PLAN) == pytest.approx(1.455, rel=2e-3)
    assert noise_multiplier(**PLAN, accountant="rdp") > noise_multiplier(**PLAN)


def test_epochs():
    def plan(noise):
        return [(EpochRelease(noise, epoch), 20) for epoch in range(5)]

    found = calibrate(plan, 2.0, 1e-5, "pld")
    spent = epsilon(noise_multiplier=found, sample_rate=1.0, steps=5, delta=1e-5)
    assert 2.0 * (1 - 1e-3) <= spent <= 2.0


def test_planned_mixture_with_past_spending():
    def plan(noise):
        return [(PoissonRelease(1.0, 0.01), 300), (PoissonRelease(noise, 0.02, 2), 100)]

    found = calibrate(plan, 3.0, 1e-5)
    accountant = create_accountant("pld")
    for release, count in plan(found):
        accountant.record(release, count)
    assert 3.0 * (1 - 1e-3) <= accountant.get_epsilon(1e-5) <= 3.0


def test_a_delta_above_the_chance_of_being_sampled_is_refused():
    """Any noise would do, even none to speak of: with probability 1 − δ the record is in no batch."""
    with pytest.raises(ConfigurationError, match="protect nobody"):
        noise_multiplier(target_epsilon=3.0, target_delta=0.1, sample_rate=1e-6, steps=1)


def test_unreachable_targets_are_refused():
    with pytest.raises(ConfigurationError, match="no noise multiplier"):
        calibrate(lambda noise: [(PoissonRelease(1.0, 0.1), 10), (PoissonRelease(noise, 0.1), 1)], 0.1, 1e-5)
    with pytest.raises(ConfigurationError, match="smaller epsilon"):
        noise_multiplier(target_epsilon=1e9, target_delta=1e-5, sample_rate=1.0, steps=1)


BAD = [
    ("target_epsilon", (0.0, -1.0, math.nan, math.inf, "3", True)),
    ("target_delta", (0.0, 1.0, math.nan, -1.0)),
    ("sample_rate", (0.0, 1.5, math.nan)),
    ("steps", (0, -1, 1.0, True)),
    ("accountant", ("gdp", None)),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD for value in values])
def test_bad_arguments_are_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=name):
        noise_multiplier(**{**PLAN, name: value})


@pytest.mark.parametrize(("name", "value"), [("steps", 1.5), ("delta", 0), ("noise_multiplier", -1)])
def test_epsilon_refuses_bad_arguments(name, value):
    plan = {"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 10, "delta": 1e-5}
    with pytest.raises(ConfigurationError, match=name):
        epsilon(**{**plan, name: value})


def test_chi_square_of_one_draw_matches_the_mixture_formula():
    release = PoissonRelease(1.3, 0.2)
    assert chi_square(release) == pytest.approx(0.04 * math.expm1(1 / 1.69))
    assert chi_square(PoissonRelease(1.3, 0.2, 2)) > 2 * chi_square(release)
    assert chi_square(PoissonRelease(1e-3, 0.2)) == chi_square(PoissonRelease(1e-3, 0.2, 2)) == math.inf
