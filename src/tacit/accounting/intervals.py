"""Intervals that contain the ε, or the δ, of a planned run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tacit.accounting.composition import compose
from tacit.accounting.events import Adjacency, History, PoissonRelease, checked_count, checked_delta, checked_number
from tacit.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Interval:
    """``lower ≤ ε ≤ upper`` at a given δ (or the same for δ at a given ε). Unpacks into the two.

    Attributes:
        lower: the truth is at least this; 0 if nothing better is known.
        upper: the truth is at most this.
        method: "closed form"; "certified composition"; or "rdp", where floats cannot carry the composition.
    """

    lower: float
    upper: float
    method: str

    def __iter__(self) -> Iterator[float]:
        return iter((self.lower, self.upper))


def epsilon_interval(
    *,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    adjacency: Adjacency = "add-or-remove-one",
) -> Interval:
    """An interval that contains the ε of DP-SGD with Poisson sampling.

    Args:
        noise_multiplier: standard deviation of the noise / clipping bound, at least 0.
        sample_rate: probability with which each record is in a batch, in (0, 1].
        steps: number of noisy steps, at least 1.
        delta: probability with which the ε bound may fail, strictly between 0 and 1.
        adjacency: which data sets are neighbours. A blank record contributes nothing to any batch, so that
            "zero-out-one" has the same pair of distributions as "add-or-remove-one" (see `adjacency_of`).

    Returns:
        ``(lower, upper)`` in nats, with the method that found them. See `certified` for what is proved.

    Raises:
        ConfigurationError: an argument is outside its range.
    """
    release = _checked(noise_multiplier, sample_rate, adjacency)
    return interval_of([(release, checked_count("steps", steps))], checked_delta("delta", delta))


def interval_of(history: History, delta: float) -> Interval:
    """An interval that contains the ε of a history at ``delta``, which was checked."""
    composition = compose(history)
    if composition.empty:
        return Interval(0.0, 0.0, "closed form")
    if composition.noiseless:
        return Interval(math.inf, math.inf, "closed form")
    from tacit.accounting.certified import certified_epsilon

    return certified_epsilon(composition, delta)


def delta_interval(
    *,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    epsilon: float,
    adjacency: Adjacency = "add-or-remove-one",
) -> Interval:
    """An interval that contains the δ of DP-SGD with Poisson sampling at a given ``epsilon``; see `epsilon_interval`.

    Args:
        noise_multiplier: standard deviation of the noise / clipping bound, at least 0.
        sample_rate: probability with which each record is in a batch, in (0, 1].
        steps: number of noisy steps, at least 1.
        epsilon: in nats, at least 0.
        adjacency: which data sets are neighbours.

    Raises:
        ConfigurationError: an argument is outside its range.
    """
    release = _checked(noise_multiplier, sample_rate, adjacency)
    composition = compose([(release, checked_count("steps", steps))])
    epsilon = checked_number("epsilon", epsilon)
    if epsilon < 0:
        raise ConfigurationError(f"epsilon is {epsilon!r}, but it is a bound on a loss: pass a number of at least 0.")
    if composition.noiseless:
        return Interval(release.sample_rate, 1.0, "closed form")
    from tacit.accounting.certified import certified_delta

    return certified_delta(composition, epsilon)


def _checked(noise_multiplier: float, sample_rate: float, adjacency: str) -> PoissonRelease:
    if adjacency not in ("add-or-remove-one", "zero-out-one"):
        raise ConfigurationError(
            f"adjacency is {adjacency!r}, for which no pair of distributions is known here: choose "
            "'add-or-remove-one' or 'zero-out-one'."
        )
    return PoissonRelease(noise_multiplier, sample_rate)
