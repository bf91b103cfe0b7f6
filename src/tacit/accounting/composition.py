"""A history reduced to the mechanisms whose composition it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from tacit.accounting.events import adjacency_of
from tacit.accounting.pairs import EpochPair, FixedSizePair, Pair, ReplacedPair, noise_of, truncated_pair
from tacit.accounting.releases import (
    Adjacency,
    BallsInBinsRelease,
    CyclicRelease,
    EpochRelease,
    FixedSizeRelease,
    PoissonRelease,
    Release,
    TruncatedRelease,
)
from tacit.errors import ConfigurationError

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from tacit.accounting.events import History


@dataclass(frozen=True, slots=True)
class Composition:
    """The mechanisms a history consists of, order left out because the bounds ignore it.

    Attributes:
        precision: sum of 1/noise_multiplier² over the plain Gaussian mechanisms.  Gaussian
            mechanisms compose exactly to one with noise multiplier ``precision ** -0.5``
            (Dong, Roth, Su 2022, arXiv:1905.02383, corollary 2); 0 if there is none.
        sampled: how often each pair that is no plain Gaussian happened.
        noiseless: whether anything was released without noise, so that epsilon is infinite.
    """

    precision: float
    sampled: Mapping[Pair, int]
    noiseless: bool

    @property
    def empty(self) -> bool:
        """Whether nothing was released."""
        return not (self.noiseless or self.precision or self.sampled)


def compose(history: History, adjacency: Adjacency | None = None) -> Composition:
    """The first of `compositions`, and mostly the only one."""
    return compositions(history, adjacency)[0]


def compositions(history: History, adjacency: Adjacency | None = None) -> list[Composition]:
    """Reduce a history to pairs: an epoch becomes one, sampling at rate 1 a plain Gaussian.

    Where a record that is added has another pair than one that is removed, there are two compositions, and the worse of
    them counts.

    Args:
        history: what was released.
        adjacency: the neighbouring relation; by default that of `adjacency_of`.

    Raises:
        ConfigurationError: no proof is known for a release under this relation.
    """
    history = list(history)
    replaced = adjacency_of(history, adjacency) == "replace-one"
    truncated = any(isinstance(release, TruncatedRelease) for release, _ in history)
    found = []
    for added in (False, True) if truncated else (False,):
        parts = _Parts(replaced, added)
        for release, count in history:
            parts.add(release, count)
        found.append(parts.composition())
    return found


@dataclass
class _Parts:
    """What a history is made of, as far as it was read."""

    replaced: bool
    added: bool
    sampled: Counter[Pair] = field(default_factory=Counter)
    gaussians: list[tuple[float, int]] = field(default_factory=list)
    epochs: dict[int, float] = field(default_factory=dict)
    bins: dict[tuple[int, int], list[tuple[BallsInBinsRelease, int]]] = field(default_factory=dict)
    groups: dict[int, dict[int, Counter[PoissonRelease]]] = field(default_factory=dict)

    def add(self, release: Release, count: int) -> None:
        if isinstance(release, EpochRelease):
            noise = self.epochs.get(release.epoch, math.inf)
            self.epochs[release.epoch] = min(release.noise_multiplier, noise)
        elif isinstance(release, BallsInBinsRelease):
            self.bins.setdefault((release.epoch, release.bins), []).append((release, count))
        elif isinstance(release, CyclicRelease):
            draw = PoissonRelease(release.noise_multiplier, release.sample_rate, release.draws)
            self.groups.setdefault(release.epoch, {}).setdefault(release.group, Counter())[draw] += count
        elif isinstance(release, PoissonRelease):
            self._add_poisson(release, count)
        elif isinstance(release, TruncatedRelease):
            pair, times = truncated_pair(release, added=self.added)
            self.sampled[pair] += count * times
        elif isinstance(release, FixedSizeRelease):
            if release.size == release.records:
                self.gaussians.append((release.noise_multiplier / (2 * release.draws), count))
            else:
                noise = release.noise_multiplier / math.sqrt(release.draws)
                self.sampled[FixedSizePair(noise, release.size / release.records)] += count * release.draws
        else:
            raise ConfigurationError(f"got {release!r}, whose privacy cost is unknown.")

    def _add_poisson(self, release: PoissonRelease, count: int) -> None:
        noise, rate, draws = release.noise_multiplier, release.sample_rate, release.draws
        if rate == 1.0:
            # Every record is in all draws: it contributes exactly `draws` times the bound.
            self.gaussians.append((noise / (draws * (2 if self.replaced else 1)), count))
        else:
            self.sampled[ReplacedPair(noise, rate, draws) if self.replaced else release] += count

    def composition(self) -> Composition:
        for groups in self.groups.values():
            # Of each kind as many as any group has: that is the costliest group's, unless groups have other kinds.
            for draw, count in reduce(or_, groups.values()).items():
                self._add_poisson(draw, count)
        for (_, bins), releases in self.bins.items():
            pair = _epoch_pair(bins, releases)
            if bins == 1:
                self.gaussians.append((pair.noise, 1))
            else:
                self.sampled[pair] += 1
        self.gaussians += [(noise / (2 if self.replaced else 1), 1) for noise in self.epochs.values()]
        noiseless = any(_inverse_square(noise) == math.inf for noise, _ in self.gaussians)
        noiseless |= any(_inverse_square(noise_of(pair)) == math.inf for pair in self.sampled)
        precision = math.fsum(count * _inverse_square(noise) for noise, count in self.gaussians)
        return Composition(precision, dict(self.sampled), noiseless or precision == math.inf)


def _epoch_pair(bins: int, releases: list[tuple[BallsInBinsRelease, int]]) -> EpochPair:
    """One epoch of balls-in-bins, at the least noise that it had."""
    sums: Counter[int] = Counter()
    for release, count in releases:
        sums[release.draws] += count
    if sum(draws * count for draws, count in sums.items()) > bins:
        raise ConfigurationError(
            f"more than {bins} batches of one epoch of {bins} were released: a batch was released twice, which no "
            "proof covers."
        )
    noise = min(release.noise_multiplier for release, _ in releases)
    return EpochPair(noise, bins, tuple(sorted(sums.items())))


def dp_event(history: History, *, exact_draws: bool = True) -> DpEvent:
    """A history of Poisson draws and Gaussians as a `dp_accounting` event, for its accountants or for publication.

    Args:
        history: what was released.
        exact_draws: how a release with several draws is written.  True: as the exact mixture of
            Gaussians with Binomial(draws, sample_rate) sensitivities (Choquette-Choo et al. 2023,
            arXiv:2310.15526).  False: as the upper bound that RDP can compute (see `draws_bound`).

    Raises:
        ConfigurationError: `dp_accounting` has no event for a release.
    """
    import dp_accounting

    composition = compose(history)
    if composition.noiseless:
        return dp_accounting.NonPrivateDpEvent()
    events: list[DpEvent] = []
    if composition.precision > 0.0:
        events.append(dp_accounting.GaussianDpEvent(composition.precision**-0.5))
    for release, count in composition.sampled.items():
        if not isinstance(release, PoissonRelease):
            raise ConfigurationError(f"{release!r} has no event in dp_accounting, only Poisson sampling has.")
        if release.draws > 1 and exact_draws:
            event = _mixture_event(release)
        else:
            single, times = draws_bound(release)
            event = dp_accounting.PoissonSampledDpEvent(
                single.sample_rate, dp_accounting.GaussianDpEvent(single.noise_multiplier)
            )
            count *= times
        events.append(dp_accounting.SelfComposedDpEvent(event, count))
    return dp_accounting.ComposedDpEvent(events)


def draws_bound(release: PoissonRelease) -> tuple[PoissonRelease, int]:
    """Single-draw releases whose composition is at least as revealing as `release`.

    The release S₁ + … + Sₖ + N(0, σ²) is the sum, hence post-processing, of the k releases
    Sᵢ + N(0, σ²/k), each a Poisson-sampled Gaussian with noise multiplier σ/√k.

    Returns:
        the single-draw release and how often it is composed.
    """
    draws = release.draws
    return PoissonRelease(release.noise_multiplier / math.sqrt(draws), release.sample_rate), draws


def sensitivities(release: PoissonRelease) -> tuple[list[float], list[float]]:
    """Multiples of the clipping bound that a record can contribute, with their probabilities."""
    from scipy.stats import binom

    support = range(release.draws + 1)
    probabilities = binom.pmf(list(support), release.draws, release.sample_rate)
    return [float(times) for times in support], [float(probability) for probability in probabilities]


def _mixture_event(release: PoissonRelease) -> DpEvent:
    from dp_accounting.dp_event import MixtureOfGaussiansDpEvent

    return MixtureOfGaussiansDpEvent(release.noise_multiplier, *sensitivities(release))


def _inverse_square(noise_multiplier: float) -> float:
    """1/noise_multiplier², infinite where floats cannot hold it: never too small a cost."""
    square = noise_multiplier * noise_multiplier
    return 1.0 / square if square > 1e-300 else math.inf
