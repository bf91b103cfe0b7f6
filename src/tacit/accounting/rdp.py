"""Epsilon by Rényi differential privacy: fast, never too small, usually 3 to 15 % too large."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tacit.accounting.composition import Composition, draws_bound
from tacit.accounting.pairs import FixedSizePair, Pair, ReplacedPair, TruncatedPair, unamplified
from tacit.accounting.releases import PoissonRelease

if TYPE_CHECKING:
    import numpy as np
    from dp_accounting import DpEvent
    from numpy.typing import NDArray

# Dense near 1 for large epsilons, far out for tiny ones.
ORDERS: tuple[float, ...] = (
    *(1 + 2.0**-power for power in range(10, 3, -1)),
    *(1 + tenths / 10 for tenths in range(1, 100)),
    *(float(order) for order in range(11, 65)),
    *(72.0, 80.0, 96.0, 112.0, 128.0, 160.0, 192.0, 256.0, 320.0, 384.0, 512.0),
    *(640.0, 768.0, 1024.0, 1536.0, 2048.0),
)


def rdp_epsilon(composition: Composition, delta: float) -> float:
    """Upper bound on the smallest ε at `delta` of a composition with noise."""
    return epsilon_of_divergences(rdp_divergences(composition), delta)


def rdp_divergences(composition: Composition) -> NDArray[np.float64]:
    """Rényi divergences at `ORDERS` of a composition with noise: those of its releases add up."""
    import numpy as np

    divergences = composition.precision * np.asarray(ORDERS) / 2
    for pair, count in composition.sampled.items():
        divergences = divergences + count * _of_pair(pair)
    return np.asarray(divergences, dtype=np.float64)


def epsilon_of_divergences(divergences: Sequence[float] | NDArray[np.float64], delta: float) -> float:
    """ε at `delta` from Rényi divergences at `ORDERS`: Canonne et al. 2020, arXiv:2004.00010, proposition 12."""
    from dp_accounting import rdp

    bound, _ = rdp.compute_epsilon(ORDERS, divergences, delta)
    return float(bound)


def _of_pair(pair: Pair) -> NDArray[np.float64]:
    """Rényi divergences at `ORDERS` of one pair, in the larger of its directions, or a bound on them.

    Poisson sampling: Mironov, Talwar, Zhang 2019, arXiv:1908.10530; several draws by `draws_bound`. A replaced record
    is removed and another one added: the weak triangle inequality of Mironov 2017, arXiv:1702.07476, proposition 11.
    Samples of fixed size: Wang, Balle, Kasiviswanathan 2019, arXiv:1808.00087. An epoch of balls-in-bins is bounded
    without amplification.
    """
    import numpy as np

    orders = np.asarray(ORDERS, dtype=np.float64)
    if isinstance(pair, PoissonRelease):
        single, times = draws_bound(pair)
        return times * _sampled(single.noise_multiplier, single.sample_rate, ORDERS)
    if isinstance(pair, ReplacedPair):
        single, times = draws_bound(PoissonRelease(pair.noise, pair.rate, pair.draws))
        removed = _sampled(single.noise_multiplier, single.sample_rate, tuple(2 * orders))
        added = _sampled(single.noise_multiplier, single.sample_rate, tuple(2 * orders - 1))
        return np.asarray(times * ((orders - 0.5) / (orders - 1) * removed + added))
    if isinstance(pair, FixedSizePair):
        return np.minimum(_without_replacement(pair.noise / 2, pair.rate), orders * unamplified(pair) ** 2 / 2)
    if isinstance(pair, TruncatedPair):
        plain = _sampled(pair.noise, pair.rate, ORDERS) * (orders - 1)
        moved = _sampled(pair.noise / 2, pair.place, ORDERS) * (orders - 1)
        with np.errstate(divide="ignore", over="ignore"):
            weights = np.log([1 - pair.full, pair.full])
        return np.asarray(np.logaddexp(weights[0] + plain, weights[1] + moved) / (orders - 1))
    return orders * unamplified(pair) ** 2 / 2


@lru_cache(maxsize=512)
def _sampled(noise_multiplier: float, sample_rate: float, orders: tuple[float, ...]) -> NDArray[np.float64]:
    """Rényi divergences of one Poisson-sampled Gaussian, rounded upward."""
    import dp_accounting

    event = dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    return _computed(event, sample_rate, orders, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)


@lru_cache(maxsize=512)
def _without_replacement(noise_multiplier: float, sample_rate: float) -> NDArray[np.float64]:
    """Rényi divergences of one Gaussian on a sample without replacement, rounded upward."""
    import dp_accounting

    size = 10**9  # only their ratio counts; rounded up, which costs more
    event = dp_accounting.SampledWithoutReplacementDpEvent(
        size, min(size, math.ceil(sample_rate * size)), dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    return _computed(event, sample_rate, ORDERS, dp_accounting.NeighboringRelation.REPLACE_ONE)


def _computed(event: DpEvent, rate: float, orders: tuple[float, ...], relation: Any) -> NDArray[np.float64]:
    import numpy as np
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(list(orders), relation)
    with _without_convergence_warnings(), np.errstate(all="ignore"):
        accountant.compose(event)
    computed = np.nan_to_num(accountant.rdp, nan=math.inf, posinf=math.inf)
    all_orders = np.asarray(orders)
    # The sums run over terms of magnitude α(ln α + |ln q|): cover their rounding, which would
    # otherwise make a nearly private release cost nothing, or less.
    magnitude = all_orders / (all_orders - 1) * (1 + np.log(all_orders) - math.log(rate))
    rounded = np.maximum(computed, 0.0) + 8 * sys.float_info.epsilon * magnitude
    return np.asarray(rounded, dtype=np.float64)


@contextmanager
def _without_convergence_warnings() -> Iterator[None]:
    """Hide dp_accounting's notice that it left out an order; the others still give a bound."""

    def keep(record: logging.LogRecord) -> bool:
        return "failed to converge" not in str(record.msg)

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
