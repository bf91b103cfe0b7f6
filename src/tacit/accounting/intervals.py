"""Intervals that contain the ε, or the δ, of a planned run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tacit.accounting.checks import checked_count, checked_delta, checked_number
from tacit.accounting.composition import Composition, compose, compositions
from tacit.accounting.events import History, checked_adjacency, for_group
from tacit.accounting.releases import Adjacency, PoissonRelease
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
    group: int = 1,
) -> Interval:
    """An interval that contains the ε of DP-SGD with Poisson sampling.

    Args:
        noise_multiplier: standard deviation of the noise / clipping bound, at least 0.
        sample_rate: probability with which each record is in a batch, in (0, 1].
        steps: number of noisy steps, at least 1.
        delta: probability with which the ε bound may fail, strictly between 0 and 1.
        adjacency: which data sets are neighbours: one has a record more ("add-or-remove-one"), a blank one
            ("zero-out-one", which costs the same), or another one ("replace-one").
        group: for how many records together.

    Returns:
        ``(lower, upper)`` in nats, with the method that found them. See `certified` for what is proved.

    Raises:
        ConfigurationError: an argument is outside its range.
    """
    release = for_group(PoissonRelease(noise_multiplier, sample_rate), checked_count("group", group))
    history = [(release, checked_count("steps", steps))]
    return interval_of(history, checked_delta("delta", delta), checked_adjacency(adjacency))


def interval_of(history: History, delta: float, adjacency: Adjacency | None = None) -> Interval:
    """An interval that contains the ε of a history at ``delta``, which was checked."""
    return _worst([_of_composition(each, delta) for each in compositions(history, adjacency)])


def _of_composition(composition: Composition, delta: float) -> Interval:
    if composition.empty:
        return Interval(0.0, 0.0, "closed form")
    if composition.noiseless:
        return Interval(math.inf, math.inf, "closed form")
    from tacit.accounting.certified import certified_epsilon

    return certified_epsilon(composition, delta)


def _worst(intervals: list[Interval]) -> Interval:
    """An interval that contains the largest of several numbers."""
    largest = max(intervals, key=lambda interval: interval.upper)
    return Interval(max(interval.lower for interval in intervals), largest.upper, largest.method)


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
    release = PoissonRelease(noise_multiplier, sample_rate)
    composition = compose([(release, checked_count("steps", steps))], checked_adjacency(adjacency))
    epsilon = checked_number("epsilon", epsilon)
    if epsilon < 0:
        raise ConfigurationError(f"epsilon is {epsilon!r}, but it is a bound on a loss: pass a number of at least 0.")
    if composition.noiseless:
        return Interval(release.sample_rate, 1.0, "closed form")
    from tacit.accounting.certified import certified_delta

    return certified_delta(composition, epsilon)
