"""Epsilon by numerical composition of privacy loss distributions: tight, and never too small.

Computed by `dp_accounting` (Koskela et al. 2020, arXiv:1906.03049; discretised pessimistically by
"connect the dots", Doroshenko et al. 2022, arXiv:2207.04380).  What is decided here is the
discretisation, what is cached, and when floats cannot carry the method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from tacit.accounting.composition import Composition, sensitivities
from tacit.accounting.events import PoissonRelease
from tacit.accounting.gaussian import gaussian_epsilon
from tacit.accounting.rdp import rdp_epsilon

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

# Losses beyond this make exp(loss) meaningless in floats; RDP bounds the rest.
_LARGEST_LOSS = 500.0
_MOST_CELLS = 2**21
# Of one release: dp_accounting needs 5 µs for each, but 150 µs with several draws.
_MOST_CELLS_SINGLE, _MOST_CELLS_DRAWS = 10**5, 2**13
_MOST_DISTINCT = 32


def pld_epsilon(composition: Composition, delta: float) -> float:
    """Upper bound on the smallest ε at `delta` of a composition with noise, usually tight to 1e-3 of it.

    Plain Gaussian mechanisms alone are exact (closed form).  Where rounding in the Fourier
    transforms could matter (tiny `delta`, or losses beyond 500), the result is the RDP bound.
    """
    if not composition.sampled:
        return gaussian_epsilon(math.sqrt(composition.precision), delta)
    sampled = limit_distinct(composition.sampled)
    slack = _rounding_slack(sum(sampled.values()))
    largest_loss = max(_largest_loss(release) for release in sampled)
    if slack > delta / 2 or largest_loss > _LARGEST_LOSS or composition.precision > 2 * _LARGEST_LOSS:
        return rdp_epsilon(composition, delta)
    interval = _interval(Composition(composition.precision, sampled, noiseless=False))
    epsilon = _composed(composition.precision, sampled, interval, delta - slack)
    if not epsilon <= _LARGEST_LOSS:
        return rdp_epsilon(composition, delta)
    return epsilon


def limit_distinct(sampled: Mapping[PoissonRelease, int]) -> Mapping[PoissonRelease, int]:
    """At most 32 distinct releases that cost at least as much, so that a schedule stays cheap.

    Releases in one cell of a geometric grid count as one with the least noise and the largest
    rate of the cell.  Both only raise the privacy loss: more noise is post-processing, and a
    smaller rate is a mixture with not sampling the record at all.
    """
    ratio = 1e-3
    grouped = sampled
    while len(grouped) > _MOST_DISTINCT:
        cells: dict[tuple[int, int, int], tuple[PoissonRelease, int]] = {}
        for release, count in sampled.items():
            noise_cell = math.floor(math.log(release.noise_multiplier) / ratio)
            rate_cell = math.floor(math.log(release.sample_rate) / ratio)
            # Doubling draws raises the loss too, but by far more than a grid cell: keep them apart.
            key = (noise_cell, rate_cell, release.draws)
            worst, total = cells.get(key, (release, 0))
            noise = min(worst.noise_multiplier, release.noise_multiplier)
            rate = max(worst.sample_rate, release.sample_rate)
            cells[key] = PoissonRelease(noise, rate, release.draws), total + count
        merged: dict[PoissonRelease, int] = {}
        for release, count in cells.values():
            merged[release] = merged.get(release, 0) + count
        if ratio > 1e3:  # only the numbers of draws still differ
            return merged
        grouped, ratio = merged, 2 * ratio
    return grouped


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


def _composed(precision: float, sampled: Mapping[PoissonRelease, int], interval: float, delta: float) -> float:
    from dp_accounting.pld import privacy_loss_distribution as pld

    parts = [_self_composed(release, count, interval) for release, count in sampled.items()]
    if precision > 0.0:
        parts.append(pld.from_gaussian_mechanism(precision**-0.5, value_discretization_interval=interval))
    # Shortest first: the cost of a convolution is that of its result.
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=32)
def _self_composed(release: PoissonRelease, count: int, interval: float) -> PrivacyLossDistribution:
    single = _single(release, interval)
    if count < 2**14:
        return single.self_compose(count) if count > 1 else single
    # dp_accounting raises the number of grid points to the power `count` to see whether the
    # result is small; pairs have grids too long for that question to be asked again.
    pair = single.self_compose(2, tail_mass_truncation=0)
    total = pair.self_compose(count // 2)
    return total.compose(single) if count % 2 else total


@lru_cache(maxsize=32)
def _single(release: PoissonRelease, interval: float) -> PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution as pld

    if release.draws == 1:
        return pld.from_gaussian_mechanism(
            release.noise_multiplier,
            sampling_prob=release.sample_rate,
            value_discretization_interval=interval,
        )
    return pld.from_mixture_gaussian_mechanism(
        release.noise_multiplier, *sensitivities(release), value_discretization_interval=interval
    )


def _rounding_slack(releases: int) -> float:
    """δ set aside for rounding: n-fold powers of Fourier coefficients lose about n ulp.

    Against the closed form of the Gaussian mechanism, δ of 1 to 2·10⁵ discretised and composed
    releases was seen to fall short by less than a hundredth of this.
    """
    return 1e-12 + 1e-15 * releases


def _largest_loss(release: PoissonRelease) -> float:
    """Loss exceeded with probability about exp(−50), where `dp_accounting` truncates."""
    ratio = release.draws / release.noise_multiplier
    exponent = ratio * ratio / 2 + 10 * ratio
    rate = -math.expm1(release.draws * math.log1p(-release.sample_rate))
    return math.log1p(rate * math.expm1(exponent)) if exponent < _LARGEST_LOSS else exponent


def _interval(composition: Composition) -> float:
    """Discretisation of the loss: 1/40 of its spread per release.

    Connecting the dots adds at most interval²/4 to the variance of each release, so this costs
    under 2e-4 of the variance, whatever the number of releases.  It is coarser where that many
    grid points are too many, or so fine that the rounding of δ at each of them, about 1e-16,
    would add up to surplus mass: coarse and surplus both err upward.  Intervals on a grid of a
    16th of an octave keep cached distributions useful while the history grows, and are close
    enough for epsilon to be nearly continuous in the noise multiplier.
    """
    sampled = composition.sampled
    largest_loss = max(_largest_loss(release) for release in sampled)
    releases = sum(sampled.values()) + (composition.precision > 0.0)
    variance = composition.precision + math.fsum(
        count * min(chi_square(release), largest_loss**2) for release, count in sampled.items()
    )
    spread = math.sqrt(variance / releases)
    precise = min(math.sqrt(1.6e-13 * releases * spread), spread / 2)
    wanted = min(max(spread / 40, precise), 2.0**-9)
    affordable = max(
        (16 * math.sqrt(variance) + variance) / _MOST_CELLS,
        *(_largest_loss(r) / (_MOST_CELLS_SINGLE if r.draws == 1 else _MOST_CELLS_DRAWS) for r in sampled),
    )
    interval = min(max(wanted, affordable), 2.0**-5)
    return float(2.0 ** (math.floor(16 * math.log2(interval)) / 16))
