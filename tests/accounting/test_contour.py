"""Contour integrals against enumeration, against closed forms, and against squaring: each checks the other."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, seed, settings
from hypothesis import strategies as st
from scipy.stats import norm

from tacit.accounting import PoissonRelease, certified, contour
from tacit.accounting.certified import certified_epsilon, contour_epsilon, squared_epsilon
from tacit.accounting.composition import Composition, compose
from tacit.accounting.contour import Cumulants
from tacit.accounting.gaussian import gaussian_epsilon, gaussian_log_delta
from tacit.accounting.losses import Losses

FEW = Losses(np.array([-0.7, 0.1, 0.9]), np.array([0.2, 0.5, 0.299]), 0.001, upper=True)
LATTICE = Losses(np.array([-1.0, 1.0]), np.array([1 / (1 + math.e), math.e / (1 + math.e)]), 0.0, upper=True)


def enumerated(losses: Losses, times: int, epsilon: float) -> float:
    """δ of the sum, atom by atom."""
    total = 1 - (1 - losses.infinite) ** times
    for chosen in itertools.product(range(len(losses.values)), repeat=times):
        mass = math.prod(losses.masses[list(chosen)])
        value = sum(losses.values[list(chosen)])
        total += mass * max(0.0, -math.expm1(epsilon - value))
    return total


@pytest.mark.parametrize("losses", [FEW, LATTICE], ids=["few", "lattice"])
@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("near", [0.1, 0.5, 1.5])
def test_every_contour_bounds_what_is_enumerated(losses: Losses, times: int, near: float) -> None:
    """Also where the characteristic function of a lattice comes back to 1, and far from the saddle."""
    line = contour.contour(Cumulants([(losses, times)], 0.0), near)
    assert line is not None
    for epsilon in (0.0, near / 2, near, 1.0, 2 * near, 3.99):
        truth = enumerated(losses, times, epsilon)
        assert line.delta(epsilon, upper=False) <= truth * (1 + 1e-12) + 1e-15
        assert truth <= line.delta(epsilon, upper=True) * (1 + 1e-12)
    truth = enumerated(losses, times, near)
    assert line.delta(near, upper=True) - line.delta(near, upper=False) <= 0.05 * truth + 2e-3


def test_the_added_gaussian_adds_at_most_what_is_taken_off() -> None:
    for width in (0.01, 0.1, 0.5):
        noise = np.linspace(-9, 9, 20_001)
        weights = norm.pdf(noise) * (noise[1] - noise[0])
        for y in np.linspace(-4 * width, 4 * width, 41):
            smeared = weights @ np.clip(-np.expm1(-(y + width**2 / 2 + width * noise)), 0, None)
            grown = smeared - max(0.0, -math.expm1(-y))
            allowed = width / math.sqrt(2 * math.pi) * math.exp(-(y**2) / (2 * width**2) - y / 2)
            assert -1e-9 <= grown <= allowed * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize(("noise", "steps"), [(100.0, 10**4), (30.0, 777), (2.0, 5), (500.0, 10**6), (500.0, 10**7)])
@pytest.mark.parametrize("delta", [1e-3, 1e-9, 1e-20])
def test_gaussians_composed_like_any_other_contain_the_closed_form(noise: float, steps: int, delta: float) -> None:
    composition = Composition(0.0, {PoissonRelease(noise, 1.0): steps}, noiseless=False)
    lower, upper = certified_epsilon(composition, delta)
    truth = gaussian_epsilon(math.sqrt(steps) / noise, delta)
    assert lower <= truth <= upper
    assert upper - lower <= 0.001 * upper


def test_a_gaussian_part_is_exact() -> None:
    rare = Composition(4.0, {PoissonRelease(50.0, 1e-6): 1}, noiseless=False)
    ends = contour_epsilon(rare, 1e-6)
    assert ends is not None
    assert ends[0] <= gaussian_epsilon(2.0, 1e-6) <= ends[1]
    assert ends[1] - ends[0] <= 2e-4 * ends[1]


@seed(4)
@settings(max_examples=15, deadline=None, database=None)
@given(
    st.lists(
        st.tuples(st.floats(-1.2, 6.2), st.floats(-7, 0), st.floats(0, 7)).map(
            lambda v: (math.exp(v[0]), 10 ** v[1], int(10 ** v[2]))
        ),
        min_size=1,
        max_size=3,
    ),
    st.floats(-20, -2),
    st.sampled_from(["add-or-remove-one", "replace-one"]),
)
def test_squaring_and_contours_never_contradict_each_other(phases, exponent, adjacency) -> None:
    composition = compose([(PoissonRelease(s, q), steps) for s, q, steps in phases], adjacency)
    delta = 10**exponent
    found = certified_epsilon(composition, delta)
    assume(found.method == "certified composition" and 0 < found.upper < 200)
    lower, upper = squared_epsilon(composition, delta)
    assert found.lower <= upper * (1 + 2e-9) + 1e-6
    assert lower <= found.upper
    assert found.upper - found.lower <= max(0.01 * found.upper, 1e-3)


def test_where_too_many_frequencies_were_needed_squaring_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    composition = compose([(PoissonRelease(1.0, 0.01), 100)])
    expected = certified_epsilon(composition, 1e-5)
    monkeypatch.setattr(contour, "_MOST", 10)
    assert contour_epsilon(composition, 1e-5) is None
    found = certified_epsilon(composition, 1e-5)
    assert found.method == "certified composition"
    assert found.lower <= expected.upper
    assert expected.lower <= found.upper


def test_an_infinite_loss_above_delta_is_no_bound() -> None:
    assert contour_epsilon(compose([(PoissonRelease(1.0, 0.01), 1)]), 1e-5) is None  # one release: no composition
    cumulants = Cumulants([(FEW, 3)], 0.0)
    assert cumulants.infinite == pytest.approx(1 - 0.999**3, rel=1e-12)
    assert certified._solved(cumulants, 1e-3, [], upper=True) is None


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
def test_deltas_by_either_way(epsilon: float) -> None:
    composition = Composition(0.0, {PoissonRelease(10.0, 1.0): 100}, noiseless=False)
    found = certified.certified_delta(composition, epsilon)
    truth = math.exp(gaussian_log_delta(1.0, epsilon))
    assert found.lower <= truth <= found.upper
    assert found.upper - found.lower <= 0.01 * truth
