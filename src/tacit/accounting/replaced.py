"""Steps in which a record is replaced, or takes another's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tacit.accounting.cells import Cells, Direction, line, log_masses
from tacit.accounting.composition import sensitivities
from tacit.accounting.losses import Losses
from tacit.accounting.pairs import FixedSizePair, ReplacedPair, TruncatedPair
from tacit.accounting.releases import PoissonRelease
from tacit.accounting.single_step import poisson_cells

if TYPE_CHECKING:
    from tacit.accounting.losses import Array


def replaced_losses(pair: ReplacedPair, *, upper: bool, lost: float, cell: float) -> Losses:
    """N(s, σ²) against N(−s, σ²): the likelihood ratio increases in x and is 1 at 0.

    Args:
        pair: the pair.
        upper: which bound.
        lost: mass that may lie beyond the outermost nodes.
        cell: width of a cell in standard deviations.
    """
    sigma = pair.noise
    found, weights = sensitivities(PoissonRelease(sigma, pair.rate, pair.draws))
    shifts, chances = np.asarray(found)[1:], np.asarray(weights)[1:]
    right = line(0.0, lost, sigma, cell)
    right = right[right > 0]
    right = np.concatenate([right, right[-1] + cell * sigma * np.arange(1, shifts[-1] / (cell * sigma) + 1)])
    nodes = np.concatenate([-right[::-1], [0.0], right])
    logs = log_masses(nodes, np.concatenate([[0.0], shifts, -shifts]), sigma)
    base, size = logs[:, :1], len(shifts)
    # (mass − mass of N(0, σ²)) / that, of P and of Q
    excess = [np.expm1(logs[:, part] - base) @ chances for part in (slice(1, size + 1), slice(size + 1, 2 * size + 1))]
    q_masses = np.exp(base[:, 0]) * (1 + excess[1])
    ratio = (excess[0] - excess[1]) / (1 + excess[1])  # α − 1 of each cell
    there = np.isfinite(ratio) & (q_masses > 0)
    if not upper:
        return Cells(ratio[there], q_masses[there], 0.0, upper=False).losses("remove")
    exponents = nodes[:, None] * shifts / sigma**2
    half = np.exp(-(shifts**2) / (2 * sigma**2))
    with np.errstate(over="ignore"):
        plus = np.exp(exponents) * half @ chances - chances.sum()
        minus = np.exp(-exponents) * half @ chances - chances.sum()
    return _on_nodes((plus - minus) / (1 + minus), ratio, q_masses).losses("remove")


def _on_nodes(at_nodes: Array, ratio: Array, q_masses: Array) -> Cells:
    """Put cells with known masses on their ends; both tails keep their masses, at the outermost node and at ∞ or 0."""
    part = np.clip((ratio[1:-1] - at_nodes[:-1]) / np.diff(at_nodes), 0.0, 1.0)
    total = np.zeros(len(at_nodes))
    total[:-1] += q_masses[1:-1] * (1 - part)
    total[1:] += q_masses[1:-1] * part
    total[-1] += q_masses[-1]
    beyond = max(0.0, float(q_masses[-1] * (ratio[-1] - at_nodes[-1])))
    kept = float((1 + ratio[0]) / (1 + at_nodes[0]))
    kept = min(max(kept, 0.0), 1.0)
    total[0] += q_masses[0] * kept
    excess = np.concatenate([[-1.0], at_nodes])
    return Cells(excess, np.concatenate([[q_masses[0] * (1 - kept)], total]), beyond, upper=True)


def fixed_size_losses(pair: FixedSizePair, *, upper: bool, lost: float, cell: float) -> Losses:
    """The pair whose profile bounds a sample without replacement; below, the pair that some data have.

    Losses above 0 are those of "the mixture against N(0, σ²)", below 0 those of "N(0, σ²) against the mixture"; the
    rest of the mass is at 0, where both profiles are the total variation and a node is.
    """
    cells = poisson_cells(PoissonRelease(pair.noise / 2, pair.rate), upper=upper, lost=lost, cell=cell)
    above, below = cells.losses("remove"), cells.losses("add")
    if not upper:
        return above
    up, down = above.values > 0, below.values < 0
    masses = np.concatenate([below.masses[down], [0.0], above.masses[up]])
    masses[int(down.sum())] = max(0.0, 1.0 - above.infinite - float(masses.sum()))
    values = np.concatenate([below.values[down], [0.0], above.values[up]])
    return Losses(values, masses, above.infinite, upper)


def truncated_losses(pair: TruncatedPair, direction: Direction, *, upper: bool, lost: float, cell: float) -> Losses:
    """A mixture, known to both sides, of an ordinary draw and one in which a record takes another's place.

    Below, it is the pair of data in which the others contribute nothing.
    """
    if not upper:
        rate = (1 - pair.full) * pair.rate + pair.full * pair.place
        return poisson_cells(PoissonRelease(pair.noise, rate), upper=False, lost=lost, cell=cell).losses(direction)
    plain = poisson_cells(PoissonRelease(pair.noise, pair.rate), upper=upper, lost=lost, cell=cell)
    moved = poisson_cells(PoissonRelease(pair.noise / 2, pair.place), upper=upper, lost=lost, cell=cell)
    parts = [(plain.losses(direction), 1 - pair.full), (moved.losses(direction), pair.full)]
    values = np.concatenate([losses.values for losses, _ in parts])
    masses = np.concatenate([weight * losses.masses for losses, weight in parts])
    order = np.argsort(values, kind="stable")
    infinite = sum(weight * losses.infinite for losses, weight in parts)
    there = masses[order] > 0
    return Losses(values[order][there], masses[order][there], infinite, upper)
