"""Intervals contain the truth, are narrow, and fall back to RDP where floats do not carry the composition."""

import math

import pytest
from dp_accounting.pld import PLDAccountant as ReferencePLD
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from scipy.stats import norm

from tacit.accounting import (
    PLDAccountant,
    PoissonRelease,
    RDPAccountant,
    create_accountant,
    delta_interval,
    epsilon,
    epsilon_interval,
)
from tacit.accounting.certified import certified_epsilon
from tacit.accounting.composition import Composition, compose, dp_event
from tacit.accounting.gaussian import gaussian_epsilon, gaussian_log_delta
from tacit.accounting.squaring import squared
from tacit.errors import ConfigurationError


def plan(noise: float, rate: float, steps: int) -> dict[str, float]:
    return {"noise_multiplier": noise, "sample_rate": rate, "steps": steps}


def width(found: tuple[float, float]) -> float:
    lower, upper = found
    return (upper - lower) / max(upper, 0.1)


def one_step(noise: float, rate: float, eps: float) -> float:
    """δ of one Poisson-sampled Gaussian, the larger of both directions, in closed form (the ratio is monotone)."""

    def place(ratio: float) -> float:
        return noise**2 * math.log((ratio - 1 + rate) / rate) + 0.5 if ratio > 1 - rate else -math.inf

    x = place(math.exp(eps))
    remove = rate * norm.sf((x - 1) / noise) + (1 - rate - math.exp(eps)) * norm.sf(x / noise)
    x = place(math.exp(-eps))
    mixture = (1 - rate) * norm.cdf(x / noise) + rate * norm.cdf((x - 1) / noise)
    return max(remove, norm.cdf(x / noise) - math.exp(eps) * mixture)


def test_known_values():
    lower, upper = epsilon_interval(**plan(1.0, 0.01, 10**4), delta=1e-5)
    assert lower <= 6.18771 <= upper
    assert upper - lower < 0.003 * upper
    lower, upper = epsilon_interval(**plan(100.0, 1.0, 10**4), delta=1e-12)
    assert lower <= 7.23849 + 5e-6
    assert upper == pytest.approx(7.23849, abs=5e-6)


@pytest.mark.parametrize("noise", [0.3, 1.0, 7.0, 500.0])
@pytest.mark.parametrize("rate", [1e-7, 1e-3, 0.2, 0.999])
@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.3, 3.0])
def test_one_step_in_closed_form_lies_within(noise: float, rate: float, eps: float) -> None:
    truth = one_step(noise, rate, eps)
    if truth < 1e-25:
        pytest.skip("the closed form has lost its digits")
    lower, upper = delta_interval(**plan(noise, rate, 1), epsilon=eps)
    slack = 1e-15  # of the closed form, which is a difference
    assert lower <= truth * (1 + 1e-9) + slack
    assert truth <= upper * (1 + 1e-9) + slack


@pytest.mark.parametrize(("noise", "steps"), [(100.0, 10**4), (30.0, 777), (2.0, 5), (500.0, 10**6)])
@pytest.mark.parametrize("delta", [1e-3, 1e-9, 1e-20])
@pytest.mark.parametrize("direction", ["remove", "add"])
def test_gaussians_composed_like_any_other_contain_the_closed_form(
    noise: float, steps: int, delta: float, direction: str
) -> None:
    """At rate 1 the composition is never asked; here it is."""
    composition = Composition(0.0, {PoissonRelease(noise, 1.0): steps}, noiseless=False)
    lower, upper = (squared(composition, delta, direction, upper=up).epsilon(delta) for up in (False, True))
    truth = gaussian_epsilon(math.sqrt(steps) / noise, delta)
    assert lower <= truth * (1 + 1e-9)
    assert truth <= upper * (1 + 1e-9)
    assert upper - lower <= max(0.005 * upper, 1e-3)


# dp-accounting's own single step is only good enough at these δ.
@pytest.mark.parametrize("case", [(1.0, 0.01, 1000), (0.7, 0.05, 40), (4.0, 0.3, 300), (0.9, 0.02, 500)])
@pytest.mark.parametrize("delta", [1e-4, 1e-6])
def test_dp_accounting_agrees(case: tuple[float, float, int], delta: float) -> None:
    noise, rate, steps = case
    event = dp_event([(PoissonRelease(noise, rate), steps)])
    peer = ReferencePLD(value_discretization_interval=1e-3).compose(event).get_epsilon(delta)
    lower, upper = epsilon_interval(**plan(*case), delta=delta)
    assert lower <= peer * (1 + 1e-6)
    assert upper == pytest.approx(peer, rel=4e-3)


def test_several_draws_agree_with_dp_accounting():
    history = [(PoissonRelease(2.0, 0.02, 3), 50), (PoissonRelease(3.0, 0.05), 20), (PoissonRelease(9.0, 1.0), 4)]
    peer = ReferencePLD(value_discretization_interval=2e-3).compose(dp_event(history)).get_epsilon(1e-5)
    lower, upper = certified_epsilon(compose(history), 1e-5)
    assert lower <= peer * (1 + 1e-6)
    assert upper == pytest.approx(peer, rel=4e-3)


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [
        (0.3, 1e-7, 10**7, 1e-12),
        (0.3, 1e-5, 10**4, 1e-20),
        (0.5, 1e-4, 10**5, 1e-8),
        (500.0, 0.5, 10**6, 1e-10),
        (50.0, 0.999, 10**4, 1e-9),
        (4.0, 0.05, 3000, 1e-20),
        (20.0, 0.3, 100, 1e-5),
        (0.8, 0.004, 14000, 1e-5),
    ],
)
def test_intervals_are_narrow(noise: float, rate: float, steps: int, delta: float) -> None:
    found = epsilon_interval(**plan(noise, rate, steps), delta=delta)
    assert found.method == "certified composition"
    assert width(tuple(found)) < 0.01
    assert found.upper <= epsilon(**plan(noise, rate, steps), delta=delta, accountant="rdp") * 1.001


def test_epsilon_and_delta_are_inverse():
    lower, upper = epsilon_interval(**plan(1.2, 0.02, 500), delta=1e-6)
    assert delta_interval(**plan(1.2, 0.02, 500), epsilon=upper).lower <= 1e-6
    assert delta_interval(**plan(1.2, 0.02, 500), epsilon=lower).upper >= 1e-6
    at_zero = delta_interval(**plan(2.0, 1.0, 1), epsilon=0.0)
    assert at_zero.lower <= math.exp(gaussian_log_delta(0.5, 0.0)) <= at_zero.upper


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [(0.01, 0.01, 10, 1e-5), (1e-4, 0.5, 10, 1e-5), (0.02, 0.9, 10**4, 1e-5)],
)
def test_where_floats_cannot_carry_it_the_bound_is_rdps_and_says_so(noise, rate, steps, delta):
    found = epsilon_interval(**plan(noise, rate, steps), delta=delta)
    assert found.method == "rdp"
    assert found.lower == 0.0
    assert found.upper == epsilon(**plan(noise, rate, steps), delta=delta, accountant="rdp")


def test_a_record_that_is_hardly_ever_drawn_costs_nothing():
    assert tuple(epsilon_interval(**plan(1.0, 1e-9, 100), delta=1e-6)) == (0.0, 0.0)


def test_monotone_in_steps_and_noise():
    by_steps = [epsilon(**plan(1.0, 0.05, steps), delta=1e-5) for steps in (1, 2, 30, 31, 1000)]
    assert by_steps == sorted(set(by_steps))
    by_noise = [epsilon(**plan(noise, 0.05, 30), delta=1e-5) for noise in (4, 2, 1.01, 1)]
    assert by_noise == sorted(set(by_noise))


def test_a_schedule_costs_between_its_ends():
    pld, rdp = PLDAccountant(), RDPAccountant()
    for step in range(60):
        for accountant in (pld, rdp):
            accountant.record(PoissonRelease(1.5 + step / 120, 0.01))
    found = pld.get_epsilon(1e-5)
    worst, best = (epsilon(**plan(noise, 0.01, 60), delta=1e-5) for noise in (1.5, 2.0))
    assert best < found < min(worst, rdp.get_epsilon(1e-5))
    lower, upper = pld.get_interval(1e-5)
    assert lower <= upper == found


def test_what_was_released_without_noise_or_not_at_all():
    accountant = create_accountant("rdp")
    assert tuple(accountant.get_interval(1e-5)) == (0.0, 0.0)
    accountant.record(PoissonRelease(0.0, 0.1))
    assert accountant.get_interval(1e-5).lower == math.inf
    assert tuple(epsilon_interval(**plan(0.0, 0.1, 1), delta=1e-5)) == (math.inf, math.inf)
    assert tuple(delta_interval(**plan(0.0, 0.1, 1), epsilon=1.0)) == (0.1, 1.0)


def test_unknown_adjacency_and_negative_epsilon():
    with pytest.raises(ConfigurationError, match="no pair of distributions is known"):
        epsilon_interval(**plan(1.0, 0.1, 1), delta=1e-5, adjacency="swap-one")
    with pytest.raises(ConfigurationError, match="at least 0"):
        delta_interval(**plan(1.0, 0.1, 1), epsilon=-1.0)


def test_random_plans_lie_between_the_bounds_of_others():
    @seed(3)
    @settings(max_examples=25, deadline=None, database=None)
    @given(
        st.floats(math.log(0.4), math.log(100)).map(math.exp),
        st.floats(math.log(1e-6), 0).map(math.exp),
        st.integers(1, 10**5),
        st.floats(-20, -3).map(lambda power: 10.0**power),
    )
    def between(noise: float, rate: float, steps: int, delta: float) -> None:
        found = epsilon_interval(**plan(noise, rate, steps), delta=delta)
        assert 0.0 <= found.lower <= found.upper
        assert found.upper <= epsilon(**plan(noise, rate, steps), delta=delta, accountant="rdp") * (1 + 1e-6) + 1e-9
        if found.method != "rdp":
            assert width(tuple(found)) < 0.02
            # no plan is worse than the Gaussians without sampling
            assert found.lower <= gaussian_epsilon(math.sqrt(steps) / noise, delta)

    between()
