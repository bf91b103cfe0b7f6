"""A history reduced to the mechanisms whose composition it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.accounting.events import EpochRelease, History, PoissonRelease

if TYPE_CHECKING:
    from dp_accounting import DpEvent


@dataclass(frozen=True, slots=True)
class Composition:
    """The mechanisms a history consists of, order left out because the bounds ignore it.

    Attributes:
        precision: sum of 1/noise_multiplier² over the plain Gaussian mechanisms.  Gaussian
            mechanisms compose exactly to one with noise multiplier ``precision ** -0.5``
            (Dong, Roth, Su 2022, arXiv:1905.02383, corollary 2); 0 if there is none.
        sampled: how often each release with ``sample_rate < 1`` happened.
        noiseless: whether anything was released without noise, so that epsilon is infinite.
    """

    precision: float
    sampled: Mapping[PoissonRelease, int]
    noiseless: bool

    @property
    def empty(self) -> bool:
        """Whether nothing was released."""
        return not (self.noiseless or self.precision or self.sampled)


def compose(history: History) -> Composition:
    """Reduce a history: an epoch becomes one Gaussian, sampling at rate 1 none at all."""
    sampled: dict[PoissonRelease, int] = {}
    gaussians: list[tuple[float, int]] = []
    epochs: dict[int, float] = {}
    for release, count in history:
        if isinstance(release, EpochRelease):
            epochs[release.epoch] = min(release.noise_multiplier, epochs.get(release.epoch, math.inf))
        elif release.sample_rate == 1.0:
            # Every record is in all draws: it contributes exactly `draws` times the bound.
            gaussians.append((release.noise_multiplier / release.draws, count))
        else:
            sampled[release] = sampled.get(release, 0) + count
    gaussians += [(noise, 1) for noise in epochs.values()]
    noiseless = any(_inverse_square(noise) == math.inf for noise, _ in gaussians)
    noiseless |= any(_inverse_square(release.noise_multiplier) == math.inf for release in sampled)
    precision = math.fsum(count * _inverse_square(noise) for noise, count in gaussians)
    return Composition(precision, sampled, noiseless or precision == math.inf)


def dp_event(history: History, *, exact_draws: bool = True) -> DpEvent:
    """The history as a `dp_accounting` event, for its accountants or for publication.

    Args:
        history: what was released.
        exact_draws: how a release with several draws is written.  True: as the exact mixture of
            Gaussians with Binomial(draws, sample_rate) sensitivities (Choquette-Choo et al. 2023,
            arXiv:2310.15526).  False: as the upper bound that RDP can compute (see `draws_bound`).
    """
    import dp_accounting

    composition = compose(history)
    if composition.noiseless:
        return dp_accounting.NonPrivateDpEvent()
    events: list[DpEvent] = []
    if composition.precision > 0.0:
        events.append(dp_accounting.GaussianDpEvent(composition.precision**-0.5))
    for release, count in composition.sampled.items():
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
