"""What an attacker can do: the trade-off between false and true alarms that a history allows.

Every ``(ε, δ(ε))`` bounds the true positive rate of any test at a given false positive rate: ``TPR ≤ e^ε FPR + δ`` and
``TPR ≤ 1 − e^(−ε) (1 − δ − FPR)`` (Kairouz, Oh, Viswanath 2015, arXiv:1311.0776; as a trade-off curve: Dong, Roth, Su
2022, arXiv:1905.02383). The least over any finite grid of ε is a bound, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tacit.accounting.checks import checked_delta
from tacit.accounting.composition import Composition, compositions
from tacit.accounting.events import History
from tacit.accounting.releases import Adjacency
from tacit.errors import ConfigurationError

_GRID = [0.0, *(10 ** (power / 64) for power in range(-192, 148))]
"""ε from 0.001 to 200."""

Points: TypeAlias = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class TradeOff:
    """Bounds on any test of whether one record was in the data.

    Attributes:
        curves: for each kind of record (see `composition.compositions`) pairs (ε, an upper bound on δ at it).
    """

    curves: tuple[Points, ...]

    def true_positive_rate(self, false_positive_rate: float) -> float:
        """The most that a test with this false positive rate can have as its true positive rate.

        Raises:
            ConfigurationError: ``false_positive_rate`` is outside (0, 1).
        """
        rate = checked_delta("false_positive_rate", false_positive_rate)
        return max(rate, *(min(1.0, *_rates(points, rate)) for points in self.curves))

    def curve(self, rates: Sequence[float]) -> list[tuple[float, float]]:
        """The trade-off at several false positive rates."""
        return [(rate, self.true_positive_rate(rate)) for rate in rates]


def _rates(points: Points, rate: float) -> Iterator[float]:
    for epsilon, delta in points:
        yield math.exp(min(epsilon, 700.0)) * rate + delta
        yield 1 - math.exp(-epsilon) * (1 - delta - rate)


def trade_off(history: History, epsilons: Iterable[float] = _GRID, *, adjacency: Adjacency | None = None) -> TradeOff:
    """The trade-off that a history allows, in the worse of both directions.

    Args:
        history: what was released.
        epsilons: at which ε the bound on δ is computed.
        adjacency: the neighbouring relation; by default the first for which all releases have a proof.

    Raises:
        ConfigurationError: no ε is given.
    """
    grid = sorted(set(epsilons))
    if not grid:
        raise ConfigurationError("epsilons is empty: the trade-off is a bound over at least one ε.")
    return TradeOff(tuple(_points(each, grid) for each in compositions(history, adjacency)))


def _points(composition: Composition, grid: Sequence[float]) -> Points:
    if composition.empty:
        return ((0.0, 0.0),)
    if composition.noiseless:
        return ((0.0, 1.0),)
    from tacit.accounting.certified import upper_curve

    return tuple(upper_curve(composition, grid))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The μ of the Gaussian mechanism (μ-GDP) that has this ε at this δ.

    For histories with sampling no μ that small holds at every δ: it describes the run at this one only.

    Raises:
        ConfigurationError: ``delta`` is outside (0, 1).
    """
    from scipy.optimize import brentq

    from tacit.accounting.gaussian import gaussian_epsilon

    delta = checked_delta("delta", delta)
    if not 0 < epsilon < math.inf:
        return 0.0 if epsilon <= 0 else math.inf
    high = 1.0
    while gaussian_epsilon(high, delta) < epsilon:
        high *= 2
    return float(brentq(lambda mu: gaussian_epsilon(mu, delta) - epsilon, 0.0, high, xtol=1e-12, rtol=1e-10))
