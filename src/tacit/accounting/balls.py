"""An epoch of balls-in-bins: the mean of many likelihood ratios, of which the record moves one.

Without the record all sums are N(0, σ²), independent; with it, one of the ``bins`` has N(1, σ²). The likelihood ratio
of the whole epoch is Y = Σ wᵢ r(xᵢ) + 1 − Σ wᵢ, with r(x) = e^((2x − 1)/2σ²) and wᵢ the part of the bins that is in
sum i. Its distribution without the record is what is computed here.

A pair with ratio Y′ dominates one with ratio Y if Y ≤ Y′ in convex order, and sums of independent variables keep that
order. So every term is split onto nodes (*up*) or merged between them (*down*), keeping mass and mean, and so is every
sum: positive numbers only, as in `losses`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tacit.accounting.cells import Cells, Direction
from tacit.accounting.losses import Losses, Mesh, moments, nodes_between, tail_ends
from tacit.accounting.pairs import EpochPair
from tacit.accounting.releases import PoissonRelease
from tacit.accounting.single_step import poisson_cells

if TYPE_CHECKING:
    from tacit.accounting.losses import Array

_ROWS = 256


@dataclass(frozen=True)
class Ratios:
    """A sum of likelihood ratios minus their means, under the distribution without the record.

    Attributes:
        values: ``(n,)``, ascending.
        masses: ``(n,)``: their probabilities.
        beyond: how much of the mean is at +∞, where no probability is.
        least: no value is below this.
        upper: which bound.
    """

    values: Array
    masses: Array
    beyond: float
    least: float
    upper: bool


def epoch_losses(pair: EpochPair, direction: Direction, *, upper: bool, lost: float, mesh: Mesh) -> Losses:
    """The losses of a whole epoch.

    Args:
        pair: the epoch.
        direction: "remove": P is with the record and Q without; "add": the other way round.
        upper: which bound.
        lost: mass that may be moved to infinity.
        mesh: how fine.
    """
    sums = sum(count for _, count in pair.sums)
    each = lost / (4 * sums)
    cells = poisson_cells(PoissonRelease(pair.noise, 1.0), upper=upper, lost=each, cell=mesh.cell)
    order = np.argsort(cells.excess, kind="stable")
    total: Ratios | None = None
    for draws, count in pair.sums:
        weight = draws / pair.bins
        one = Ratios(weight * cells.excess[order], cells.masses[order], weight * cells.beyond, -weight, upper)
        part = _copies(one, count, mesh, each)
        total = part if total is None else _add(total, part, mesh, each * sums)
    assert total is not None
    return Cells(np.maximum(total.values, -1.0), total.masses, total.beyond, upper).losses(direction)


def _copies(one: Ratios, times: int, mesh: Mesh, each: float) -> Ratios:
    """The sum of ``times`` independent ones, by squaring."""
    result, square, left, size = None, one, times, 1
    while True:
        if left & 1:
            result = square if result is None else _add(result, square, mesh, each * times)
        left >>= 1
        if not left:
            break
        square, size = _add(square, square, mesh, each * 2 * size), 2 * size
    assert result is not None
    return result


def _add(one: Ratios, other: Ratios, mesh: Mesh, lost: float) -> Ratios:
    """The sum of two independent ones, on nodes of ``mesh``."""
    means_and_variances = [moments(part.values, part.masses) for part in (one, other)]
    mean = sum(m for m, _ in means_and_variances)
    deviation = math.sqrt(sum(v for _, v in means_and_variances))
    least = one.least + other.least
    ends = [tail_ends(part.values, part.masses, (1 + np.maximum(part.values, -1)) * part.masses, lost / 4)
            for part in (one, other)]  # fmt: skip
    low, high = (max(least, sum(end[side] for end in ends)) for side in (0, 1))
    nodes = nodes_between(mean, deviation, low, max(high, low + 1e-12 * deviation), mesh)
    if nodes[0] > least:
        nodes = np.concatenate([[least], nodes])
    masses, means = np.zeros(len(nodes) + 1), np.zeros(len(nodes) + 1)
    for start in range(0, len(one.values), _ROWS):
        part = slice(start, start + _ROWS)
        values = (one.values[part, None] + other.values).ravel()
        weights = (one.masses[part, None] * other.masses).ravel()
        places = np.searchsorted(nodes, values, side="right")
        masses += np.bincount(places, weights, len(masses))
        means += np.bincount(places, weights * (values - nodes[np.maximum(places - 1, 0)]), len(masses))
    beyond = one.beyond * other.masses.sum() + other.beyond * one.masses.sum()
    return _up(nodes, masses, means, beyond, least) if one.upper else _down(nodes, masses, means, least)


def _up(nodes: Array, masses: Array, means: Array, beyond: float, least: float) -> Ratios:
    """Split each bin's mass onto its two nodes; of what is beyond the last one, the rest of the mean goes to +∞."""
    inner, gaps = slice(1, len(nodes)), np.diff(nodes)
    right = np.clip(means[inner] / gaps, 0.0, masses[inner])
    total = np.zeros(len(nodes))
    total[:-1] += masses[inner] - right
    total[1:] += right
    total[-1] += masses[-1]
    total[0] += masses[0]  # rounding only: the first node is the least value
    return Ratios(nodes, total, beyond + max(0.0, float(means[-1])), least, upper=True)


def _down(nodes: Array, masses: Array, means: Array, least: float) -> Ratios:
    """Merge each bin's mass at its mean."""
    references = np.concatenate([nodes[:1], nodes])
    there = masses > 0
    values = references[there] + means[there] / masses[there]
    order = np.argsort(values, kind="stable")
    return Ratios(values[order], masses[there][order], 0.0, least, upper=False)
