"""The cost of a search for hyper-parameters: of several runs on one data set only the best is released.

If the number of runs is random, from a distribution fixed beforehand, and the score is part of each run's private
output (or computed from it and public data), the best of them costs two to three runs, however many there are
(Papernot, Steinke 2022, arXiv:2110.03620; Liu, Talwar 2019, arXiv:1811.07971). A fixed number has no such bound: then
all runs add up, see `combined`.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable

from tacit.accounting.accountants import Accountant, create_accountant
from tacit.accounting.checks import checked_delta, checked_number
from tacit.accounting.composition import compositions
from tacit.accounting.events import History, epoch_of, in_epoch
from tacit.accounting.rdp import ORDERS, epsilon_of_divergences, rdp_divergences
from tacit.accounting.releases import Adjacency
from tacit.errors import ConfigurationError


def search_epsilon(
    history: History, delta: float, *, mean_runs: float, shape: float = 1.0, adjacency: Adjacency | None = None
) -> float:
    """ε at ``delta`` of the best of a random number of runs, each with this history.

    Args:
        history: what one run releases.
        delta: strictly between 0 and 1.
        mean_runs: the mean number of runs, above 1 (for ``shape=inf`` at least 1).
        shape: of its distribution: truncated negative binomial with this η, 1 for a geometric one, 0 for a logarithmic
            one (cheapest, most spread), inf for a Poisson one (most even; it may be no run at all).
        adjacency: the neighbouring relation; by default the first for which all releases have a proof.

    Returns:
        ε in nats, by Rényi differential privacy (theorems 2 and 6 of arXiv:2110.03620); see `number_of_runs`.

    Raises:
        ConfigurationError: an argument is outside its range.
    """
    _check(mean_runs, shape)
    delta = checked_delta("delta", delta)
    worst = 0.0
    for composition in compositions(history, adjacency):
        if composition.noiseless:
            return math.inf
        if composition.empty:
            continue
        single = [float(value) for value in rdp_divergences(composition)]
        if math.isinf(shape):
            repeated = [_poisson(order, value, single, mean_runs) for order, value in zip(ORDERS, single, strict=True)]
        else:
            repeated = _negative_binomial(single, mean_runs, shape)
        worst = max(worst, epsilon_of_divergences(repeated, delta))
    return worst


def number_of_runs(*, mean_runs: float, shape: float = 1.0) -> int:
    """Draw how many runs to make, from the operating system's entropy. It must stay secret, like the other runs.

    Args:
        mean_runs: see `search_epsilon`.
        shape: see `search_epsilon`.

    Raises:
        ConfigurationError: an argument is outside its range.
    """
    _check(mean_runs, shape)
    left = secrets.randbits(53) / 2.0**53
    if math.isinf(shape):
        runs, chance = 0, math.exp(-mean_runs)
        while left >= chance and chance > 0.0:
            left, runs = left - chance, runs + 1
            chance *= mean_runs / runs
        return runs
    gamma = _gamma(mean_runs, shape)
    runs, chance = 1, _once(gamma, shape)
    while left >= chance and chance > 0.0:
        left -= chance
        chance *= (1 - gamma) * (runs + shape) / (runs + 1)
        runs += 1
    return runs


def combined(accountants: Iterable[Accountant]) -> Accountant:
    """One accountant of all that several have recorded, such as of several engines over one data set.

    Passes over the data of one are counted as other passes than those of another.

    Raises:
        ConfigurationError: there is none, they are of different adjacencies or units, or no proof covers all together.
    """
    several = list(accountants)
    if not several:
        raise ConfigurationError("there is no accountant to combine: pass at least one.")
    relations = {accountant.wanted_adjacency for accountant in several} - {None}
    if len(relations) > 1:
        raise ConfigurationError(f"the accountants were made for {sorted(map(str, relations))}: use one adjacency.")
    units = {accountant.unit for accountant in several if accountant.steps} - {None}
    if len(units) > 1:
        raise ConfigurationError(f"the units of privacy are {sorted(map(str, units))}: combine those of one kind.")
    whole = create_accountant(several[0].mechanism(), next(iter(relations), None))
    for unit in units:
        whole.claim(str(unit))
    passed = 0
    for accountant in several:
        last = passed
        for release, count in accountant.history:
            epoch = epoch_of(release)
            whole.record(release if epoch is None else in_epoch(release, passed + epoch), count)
            last = max(last, passed + (epoch or 0))
        passed = last + 1
    return whole


def _check(mean_runs: float, shape: float) -> None:
    checked_number("mean_runs", mean_runs)
    if isinstance(shape, bool) or not isinstance(shape, (int, float)) or not shape >= 0:
        raise ConfigurationError(f"shape is {shape!r}: pass a number of at least 0, or infinity.")
    if mean_runs < 1 or (mean_runs == 1 and not math.isinf(shape)):
        raise ConfigurationError(
            f"mean_runs is {mean_runs!r}, but a search has more than one run on average: pass a number above 1."
        )


def _poisson(order: float, value: float, single: list[float], mean: float) -> float:
    """Theorem 6: with ε̂ = ln(1 + 1/(λ − 1)) and the δ̂ of one run at it."""
    hat = math.log1p(1 / (order - 1))
    delta = min(1.0, *(_delta(other, divergence, hat) for other, divergence in zip(ORDERS, single, strict=True)))
    return value + mean * delta + math.log(mean) / (order - 1)


def _delta(order: float, divergence: float, epsilon: float) -> float:
    """Proposition 12 of Canonne, Kamath, Steinke 2020, arXiv:2004.00010."""
    exponent = (order - 1) * (divergence - epsilon + math.log1p(-1 / order)) - math.log(order)
    return math.exp(min(exponent, 0.0))


def _negative_binomial(single: list[float], mean: float, shape: float) -> list[float]:
    """Theorem 2, with the best λ̂ among the orders."""
    log_gamma = math.log(_gamma(mean, shape))
    extra = min(
        (1 + shape) * ((1 - 1 / order) * value - log_gamma / order) for order, value in zip(ORDERS, single, strict=True)
    )
    return [value + extra + math.log(mean) / (order - 1) for order, value in zip(ORDERS, single, strict=True)]


def _gamma(mean: float, shape: float) -> float:
    """γ of the truncated negative binomial distribution with this mean."""
    from scipy.optimize import brentq

    def excess(log_gamma: float) -> float:
        gamma = math.exp(log_gamma)
        if shape == 0:
            return (1 / gamma - 1) / -log_gamma - mean
        return shape * (1 - gamma) / (gamma * -math.expm1(shape * log_gamma)) - mean

    return math.exp(float(brentq(excess, -60.0, -1e-9, xtol=1e-14)))


def _once(gamma: float, shape: float) -> float:
    """The chance of a single run."""
    if shape == 0:
        return (1 - gamma) / -math.log(gamma)
    log_gamma = math.log(gamma)
    return shape * (1 - gamma) * math.exp(shape * log_gamma) / -math.expm1(shape * log_gamma)
