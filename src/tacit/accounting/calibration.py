"""The noise multiplier for a wanted epsilon, and the epsilon of a planned run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import count

from tacit.accounting.accountants import create_accountant
from tacit.accounting.checks import checked_count, checked_delta, checked_number
from tacit.accounting.composition import Composition, compose, sensitivities
from tacit.accounting.events import checked_adjacency
from tacit.accounting.gaussian import gaussian_epsilon
from tacit.accounting.pairs import like
from tacit.accounting.releases import Adjacency, PoissonRelease, Release
from tacit.errors import ConfigurationError

MakeHistory = Callable[[float], Iterable[tuple[Release, int]]]

# The returned noise multiplier has an epsilon in [target · (1 − TOLERANCE), target].
TOLERANCE = 1e-3
_LEAST_NOISE, _MOST_NOISE = 1e-3, 1e9


def epsilon(
    *,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    accountant: str = "pld",
    adjacency: Adjacency = "add-or-remove-one",
) -> float:
    """Upper bound on the ε of DP-SGD with Poisson sampling.

    Args:
        noise_multiplier: standard deviation of the noise / clipping bound, at least 0.
        sample_rate: probability with which each record is in a batch, in (0, 1].
        steps: number of noisy steps, at least 1.
        delta: probability with which the ε bound may fail, strictly between 0 and 1.
        accountant: "pld" (tight), "rdp" (fast) or "prv" (the same as "pld").
        adjacency: which data sets are neighbours; see `epsilon_interval`.

    Returns:
        ε in nats; infinity if `noise_multiplier` is 0.

    Raises:
        ConfigurationError: if an argument is outside its range.
    """
    release = PoissonRelease(noise_multiplier, sample_rate)
    history = [(release, checked_count("steps", steps))]
    return _epsilon_of(history, checked_delta("delta", delta), accountant, checked_adjacency(adjacency))


def noise_multiplier(
    *,
    target_epsilon: float,
    target_delta: float,
    sample_rate: float,
    steps: int,
    accountant: str = "pld",
    adjacency: Adjacency = "add-or-remove-one",
) -> float:
    """Smallest noise multiplier with which DP-SGD with Poisson sampling keeps to the target.

    Args:
        target_epsilon: wanted ε in nats, greater than 0.
        target_delta: probability with which the ε bound may fail, strictly between 0 and 1.
        sample_rate: probability with which each record is in a batch, in (0, 1].
        steps: number of noisy steps, at least 1.
        accountant: "pld" (tight), "rdp" (fast) or "prv" (the same as "pld").
        adjacency: which data sets are neighbours; see `epsilon_interval`.

    Returns:
        σ with ``epsilon(noise_multiplier=σ, ...)`` in [target_epsilon · (1 − 1e-3), target_epsilon].

    Raises:
        ConfigurationError: if an argument is outside its range or no noise meets the target.
    """
    checked_count("steps", steps)
    PoissonRelease(1.0, sample_rate)
    return calibrate(
        lambda noise: [(PoissonRelease(noise, sample_rate), steps)],
        target_epsilon,
        target_delta,
        accountant,
        checked_adjacency(adjacency),
    )


def calibrate(
    make_history: MakeHistory,
    target_epsilon: float,
    target_delta: float,
    accountant: str = "pld",
    adjacency: Adjacency | None = None,
) -> float:
    """Smallest noise multiplier with which a planned history keeps to (ε, δ).

    Args:
        make_history: the planned history as a function of the noise multiplier, its ε falling
            as the noise multiplier grows.
        target_epsilon: wanted ε in nats, greater than 0.
        target_delta: probability with which the ε bound may fail, strictly between 0 and 1.
        accountant: a name that `create_accountant` knows.
        adjacency: the neighbouring relation; by default the first for which all releases have a proof.

    Returns:
        the noise multiplier, for which the accountant's ε was found in
        [target_epsilon · (1 − 1e-3), target_epsilon].  ε is smaller only where the accountant's
        bound jumps across that interval, such as with a delta near the chance of being sampled.

    Raises:
        ConfigurationError: if an argument is outside its range, or if no noise multiplier
            between 1e-3 and 1e9 crosses the target.
    """
    target = checked_number("target_epsilon", target_epsilon)
    if target <= 0.0:
        raise ConfigurationError(
            f"target_epsilon is {target_epsilon!r}, which no finite noise can reach: pass a number above 0."
        )
    delta = checked_delta("target_delta", target_delta)
    create_accountant(accountant, adjacency)
    guess = _central_limit_guess(lambda noise: compose(make_history(noise), adjacency), target, delta)
    return _search(lambda noise: _epsilon_of(make_history(noise), delta, accountant, adjacency), target, guess)


def _epsilon_of(
    history: Iterable[tuple[Release, int]], delta: float, accountant: str, adjacency: Adjacency | None
) -> float:
    state = create_accountant(accountant, adjacency)
    for release, times in history:
        state.record(release, times)
    return state.get_epsilon(delta)


def _search(epsilon_at: Callable[[float], float], target: float, guess: float) -> float:
    """Safeguarded secant on log ε against log σ; returns only a σ whose ε was seen to be enough."""
    aim = target * (1 - TOLERANCE / 2)
    low, high = math.log(_LEAST_NOISE), math.log(_MOST_NOISE)
    too_little = too_much = False  # whether `low` and `high` were evaluated
    last: tuple[float, float] | None = None
    slope = -1.2  # ε falls about as 1/σ, faster where sampling amplifies
    x = min(max(math.log(guess), low), high)
    for evaluation in count(1):
        if high - low < 1e-9:
            break
        found = epsilon_at(math.exp(x))
        if target * (1 - TOLERANCE) <= found <= target:
            return math.exp(x)
        if found > target:
            low, too_little = x, True
        else:
            high, too_much = x, True
        error = math.log(found / aim) if 0.0 < found < math.inf else math.copysign(2.0, found - target)
        if last is not None and x != last[0] and (error - last[1]) / (x - last[0]) < -0.1:
            slope = (error - last[1]) / (x - last[0])
        last = (x, error)
        x -= min(max(error / slope, -1.5), 1.5)
        # Bisecting now and then ends the search also where ε jumps.
        if too_little and too_much and (evaluation % 4 == 0 or not low < x < high):
            x = (low + high) / 2
        x = min(max(x, low), high)
    return _at_the_end(math.exp(high), too_little, too_much, target)


def _at_the_end(noise: float, too_little: bool, too_much: bool, target: float) -> float:
    if too_little and too_much:
        return noise
    if too_much:
        raise ConfigurationError(
            f"target_epsilon {target} is met by noise multipliers below {_LEAST_NOISE:g} already, which "
            "protect nobody: ask for a smaller epsilon."
        )
    raise ConfigurationError(
        f"no noise multiplier up to {_MOST_NOISE:g} keeps epsilon within {target}: "
        "ask for a larger epsilon or fewer steps."
    )


def _central_limit_guess(composed: Callable[[float], Composition], target: float, delta: float) -> float:
    """Noise multiplier at which the history resembles one Gaussian mechanism that meets the target.

    Bu, Dong, Long, Su 2020, arXiv:1911.11607: many sampled Gaussians behave like one with
    squared sensitivity / noise ratio equal to the sum of their χ² divergences.  Only a guess.
    """
    low, high = math.log(_LEAST_NOISE), math.log(_MOST_NOISE)
    while high - low > 1e-3:
        middle = (low + high) / 2
        composition = composed(math.exp(middle))
        divergence = composition.precision + math.fsum(
            count * times * chi_square(release)
            for (release, times), count in ((like(pair), count) for pair, count in composition.sampled.items())
        )
        too_little = composition.noiseless or gaussian_epsilon(math.sqrt(divergence), delta) > target
        low, high = (middle, high) if too_little else (low, middle)
    return math.exp(high)


def chi_square(release: PoissonRelease) -> float:
    """χ² divergence of one release, about the variance of its privacy loss; inf if it overflows."""
    inverse = 1.0 / release.noise_multiplier**2
    if release.draws == 1:
        return release.sample_rate**2 * math.expm1(inverse) if inverse < 700 else math.inf
    if release.draws**2 * inverse >= 700:
        return math.inf
    support, probabilities = sensitivities(release)
    weighted = list(zip(support, probabilities, strict=True))
    return math.fsum(p * r * math.expm1(s * t * inverse) for s, p in weighted for t, r in weighted)
