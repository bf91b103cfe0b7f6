"""Privacy loss distributions of finitely many losses, that stay bounds while they are composed.

A pair of distributions (P, Q) is held as the losses ``L = ln dP/dQ`` that it takes, with their probabilities under P;
what P does where Q is zero is a loss of +∞. Two moves keep a bound a bound (Blackwell 1953; Zhu, Dong, Wang 2022,
arXiv:2106.08567, on dominating pairs and their composition):

* *up*: split an atom into two with the same mass under P and under Q. The new pair dominates the old.
* *down*: merge atoms into one. The old pair dominates the new (data processing).

So a distribution is composed by adding all pairs of losses, and put back onto few nodes, *up* or *down*: sums of
positive numbers only, in which nothing cancels and nothing wraps around.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_PAIRS, _ROWS = 2**18, 64
"""Pairs of losses that are added at once (2 MiB for each array), and rows where each pair is taken once."""


@dataclass(frozen=True)
class Mesh:
    """How far apart the nodes are on which a distribution is put back.

    Attributes:
        near: spacing around the mean, in standard deviations.
        far: spacing further out, as a part of the distance from the mean.
        cell: width of the cells of a single step, in standard deviations of its noise.
    """

    near: float
    far: float
    cell: float


@dataclass(frozen=True)
class Losses:
    """Losses in ascending order, with their masses.

    Attributes:
        values: ``(n,)`` finite losses, in nats.
        masses: ``(n,)`` their probabilities under P.
        infinite: probability under P of an infinite loss.
        upper: whether the pair dominates the true one; else the true one dominates it.
    """

    values: Array
    masses: Array
    infinite: float
    upper: bool

    def delta(self, epsilon: float) -> float:
        """``E_P (1 − e^(ε − L))₊``."""
        above = self.values > epsilon
        return float(self.infinite - np.sum(self.masses[above] * np.expm1(epsilon - self.values[above])))

    def epsilon(self, delta: float) -> float:
        """The least ε ≥ 0 with ``delta(ε) ≤ delta``, to 1e-12 of it, on the side of the bound; it may be infinite."""
        if self.infinite > delta:
            return math.inf
        if self.delta(0.0) <= delta:
            return 0.0
        low, high = 0.0, float(self.values[-1])
        while high - low > 1e-12 * high:
            middle = (low + high) / 2
            if not low < middle < high:
                break
            low, high = (middle, high) if self.delta(middle) > delta else (low, middle)
        return high if self.upper else low

    def moments(self) -> tuple[float, float]:
        """Mean and variance of the finite losses."""
        return moments(self.values, self.masses)


def moments(values: Array, masses: Array) -> tuple[float, float]:
    """Mean and variance of a measure, of whatever total mass."""
    total = float(masses.sum())
    mean = float(masses @ values) / total
    return mean, float(masses @ (values - mean) ** 2) / total


def compose(one: Losses, other: Losses, *, mesh: Mesh, lost: float) -> Losses:
    """The distribution of the sum of two losses, on nodes of ``mesh``.

    Args:
        one: a distribution.
        other: another, of the same side.
        mesh: how fine.
        lost: how much mass at either end may be moved to the outermost nodes (or, at the upper end, to infinity).
    """
    (m1, v1), (m2, v2) = one.moments(), other.moments()
    ends = _ends(one, other, lost / 2)
    nodes = nodes_between(m1 + m2, math.sqrt(v1 + v2), *ends, mesh)
    put = _Up(nodes) if one.upper else _Down(nodes)
    for values, masses in _sums(one, other):
        put.add(values, masses)
    finite = [float(d.masses.sum()) for d in (one, other)]
    infinite = one.infinite * (finite[1] + other.infinite) + other.infinite * finite[0]
    return put.losses(infinite)


def _sums(one: Losses, other: Losses) -> Iterator[tuple[Array, Array]]:
    """All sums of two losses and their masses, some rows at a time; of a distribution with itself each pair once."""
    same = one is other
    rows = _ROWS if same else max(1, _PAIRS // len(other.values))
    for start in range(0, len(one.values), rows):
        part = slice(start, start + rows)
        values, masses = one.values[part, None], one.masses[part, None]
        rest = start if same else 0
        weights = other.masses[rest:].copy()
        if same:
            weights[rows:] *= 2
        yield (values + other.values[rest:]).ravel(), (masses * weights).ravel()


def _ends(one: Losses, other: Losses, lost: float) -> tuple[float, float]:
    """Losses below and above which the sum has at most ``lost`` mass, each from both parts' own ends."""
    ends = [tail_ends(part.values, part.masses, part.masses, lost / 2) for part in (one, other)]
    low, high = (sum(end[side] for end in ends) for side in (0, 1))
    return low, max(high, low)


def tail_ends(values: Array, low_masses: Array, high_masses: Array, lost: float) -> tuple[float, float]:
    """Values below and above which at most ``lost`` lies, by the one measure and by the other."""
    last = len(values) - 1
    low = min(int(np.searchsorted(np.cumsum(low_masses), lost)), last)
    high = last - min(int(np.searchsorted(np.cumsum(high_masses[::-1]), lost)), last)
    return float(values[low]), float(values[high])


def nodes_between(mean: float, deviation: float, low: float, high: float, mesh: Mesh) -> Array:
    """Nodes from ``low`` to ``high``: evenly spaced around the mean, then further and further apart."""
    step = max(mesh.near * deviation, 1e-300)
    reach = max(high - mean, mean - low, step)
    even = np.arange(0.0, min(1 / mesh.far, reach / step) + 1) * step
    count = max(0, math.ceil(math.log(max(reach / even[-1], 1.0)) / math.log1p(mesh.far))) if even[-1] > 0 else 0
    out = np.concatenate([even, even[-1] * (1 + mesh.far) ** np.arange(1, count + 1)])
    nodes = np.unique(np.concatenate([mean - out[::-1], mean + out]))
    inner = nodes[(nodes > low) & (nodes < high)]
    return np.unique(np.concatenate([[low], inner, [high]]))


class _Up:
    """Splits each atom onto the nodes on either side of it, keeping its mass under P and under Q.

    Above the last node the other side is +∞; below the first it is −∞, where P has no mass.
    """

    def __init__(self, nodes: Array) -> None:
        self._nodes = nodes
        self._masses = np.zeros(len(nodes))
        self._gaps = np.expm1(-np.diff(nodes))
        self._infinite = 0.0

    def add(self, values: Array, masses: Array) -> None:
        nodes, last = self._nodes, len(self._nodes) - 1
        places = np.searchsorted(nodes, values, side="right") - 1
        below, above = places < 0, places >= last
        inside = ~(below | above)
        self._masses[0] += masses[below].sum()
        kept = masses[above] * np.exp(nodes[-1] - values[above])
        self._masses[last] += kept.sum()
        self._infinite += float((masses[above] * -np.expm1(nodes[-1] - values[above])).sum())
        a, m, t = places[inside], masses[inside], values[inside] - nodes[places[inside]]
        right = m * (np.expm1(-t) / self._gaps[a])
        left = m * np.exp(-t) * (np.expm1(t - np.diff(nodes)[a]) / self._gaps[a])
        self._masses += np.bincount(a, left, len(nodes)) + np.bincount(a + 1, right, len(nodes))

    def losses(self, infinite: float) -> Losses:
        there = self._masses > 0
        return Losses(self._nodes[there], self._masses[there], infinite + self._infinite, upper=True)


class _Down:
    """Merges the atoms between two nodes into one, at the loss that keeps both masses: ``−ln E e^(−L)``."""

    def __init__(self, nodes: Array) -> None:
        self._nodes = nodes
        self._masses = np.zeros(len(nodes) + 1)
        self._others = np.zeros(len(nodes) + 1)  # under Q, times e^(the bin's reference)
        self._references = np.concatenate([nodes[:1], nodes])

    def add(self, values: Array, masses: Array) -> None:
        places = np.searchsorted(self._nodes, values, side="right")
        size = len(self._masses)
        self._masses += np.bincount(places, masses, size)
        with np.errstate(over="ignore"):
            others = masses * np.exp(self._references[places] - values)
        self._others += np.bincount(places, others, size)

    def losses(self, infinite: float) -> Losses:
        there = (self._masses > 0) & (self._others > 0) & np.isfinite(self._others)
        values = self._references[there] - np.log(self._others[there] / self._masses[there])
        order = np.argsort(values, kind="stable")
        return Losses(values[order], self._masses[there][order], infinite, upper=False)
