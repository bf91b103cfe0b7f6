"""Pairs of distributions that dominate one step, or one epoch, under a neighbouring relation.

`PoissonRelease` is its own pair where a record is added, removed or blanked: N(0, σ²) against N(s, σ²) with
s ~ Binomial(draws, rate). The others are here. All are in units of the clipping bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from tacit.accounting.releases import PoissonRelease, TruncatedRelease


@dataclass(frozen=True, slots=True)
class ReplacedPair:
    """Poisson sampling, a record replaced: N(s, σ²) against N(−s, σ²), with s ~ Binomial(draws, rate).

    That it dominates follows from Slepian's interpolation; the proof is in `docs/accounting.md`.
    """

    noise: float
    rate: float
    draws: int


@dataclass(frozen=True, slots=True)
class FixedSizePair:
    """A batch of fixed size, a record replaced: the pair whose privacy profile is that of Zhu et al., theorem 11.

    With N(0, σ²) and N(2, σ²): above ε = 0 the profile of the sampled mixture against N(0, σ²), below it that of
    N(0, σ²) against the mixture. Some data have the first of these pairs, none is known that has both profiles.
    """

    noise: float
    rate: float


@dataclass(frozen=True, slots=True)
class TruncatedPair:
    """A truncated Poisson batch: with probability ``full`` the others fill it, and a record takes another's place.

    Attributes:
        noise: σ.
        rate: probability of being drawn.
        full: probability that the others fill the batch.
        place: probability that the record is in the batch, given that the others fill it.
    """

    noise: float
    rate: float
    full: float
    place: float


@dataclass(frozen=True, slots=True)
class EpochPair:
    """An epoch of balls-in-bins: one of the ``bins`` batches, each as likely, has the record.

    Attributes:
        noise: σ, the least of the epoch.
        bins: number of batches.
        sums: pairs (draws, count): how many of the released sums were of so many batches.
    """

    noise: float
    bins: int
    sums: tuple[tuple[int, int], ...]


Pair: TypeAlias = PoissonRelease | ReplacedPair | FixedSizePair | TruncatedPair | EpochPair


def truncated_pair(release: TruncatedRelease, *, added: bool) -> tuple[TruncatedPair, int]:
    """The pair of one draw, and how often it is composed (see `composition.draws_bound`).

    Args:
        release: what was released.
        added: whether the neighbour has one record more than the data set, or one less.
    """
    from scipy.stats import binom

    largest, rate, larger = release.largest, release.sample_rate, release.records + added
    full = float(binom.sf(largest - 1, larger - 1, rate))
    place = rate * largest / (largest + 1)
    if full > 0.0:
        place = min(place, float(binom.sf(largest, larger, rate)) * largest / larger / full)
    noise = release.noise_multiplier / math.sqrt(release.draws)
    return TruncatedPair(noise, rate, full, place), release.draws


def symmetric(pair: Pair) -> bool:
    """Whether P and Q may change places."""
    return isinstance(pair, (ReplacedPair, FixedSizePair))


def chance(pair: Pair) -> float:
    """A bound on the probability that a record has any part in it."""
    if isinstance(pair, PoissonRelease):
        return pair.sample_rate * pair.draws
    if isinstance(pair, ReplacedPair):
        return pair.rate * pair.draws
    if isinstance(pair, EpochPair):
        return sum(draws * count for draws, count in pair.sums) / pair.bins
    return pair.rate


def noise_of(pair: Pair) -> float:
    """Its σ."""
    return pair.noise_multiplier if isinstance(pair, PoissonRelease) else pair.noise


def unamplified(pair: Pair) -> float:
    """μ of the Gaussian mechanism that it becomes once it is known where the record is: that dominates it."""
    if isinstance(pair, PoissonRelease):
        return pair.draws / pair.noise_multiplier
    if isinstance(pair, ReplacedPair):
        return 2 * pair.draws / pair.noise
    if isinstance(pair, EpochPair):
        return max(draws for draws, _ in pair.sums) / pair.noise
    return 2 / pair.noise


def like(pair: Pair) -> tuple[PoissonRelease, float]:
    """A Poisson release that costs about as much, and how often it would have to happen: for first guesses only."""
    if isinstance(pair, PoissonRelease):
        return pair, 1.0
    if isinstance(pair, ReplacedPair):
        return PoissonRelease(pair.noise / 2, pair.rate, pair.draws), 1.0
    if isinstance(pair, FixedSizePair):
        return PoissonRelease(pair.noise / 2, pair.rate), 1.0
    if isinstance(pair, TruncatedPair):
        return PoissonRelease(pair.noise, pair.rate), 1.0
    return PoissonRelease(pair.noise, 1 / pair.bins), float(sum(draws**2 * count for draws, count in pair.sums))
