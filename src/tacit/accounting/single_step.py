"""One Poisson-sampled step of DP-SGD: a pair that dominates it, and one that it dominates.

Without the record a release is N(0, σ²); with it, it is N(s, σ²) with s ~ Binomial(draws, q): for one draw the
Poisson-sampled Gaussian. The likelihood ratio α(x) between them increases in x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tacit.accounting.cells import Cells, line, log_masses
from tacit.accounting.composition import sensitivities
from tacit.accounting.releases import PoissonRelease

if TYPE_CHECKING:
    from tacit.accounting.losses import Array


def poisson_cells(release: PoissonRelease, *, upper: bool, lost: float, cell: float) -> Cells:
    """The likelihood ratios of one release.

    Args:
        release: what was released.
        upper: which bound.
        lost: mass that may lie beyond the outermost nodes.
        cell: width of a cell in standard deviations.
    """
    sigma = release.noise_multiplier
    shifts, chances = (np.asarray(part) for part in sensitivities(release))
    nodes = line(float(shifts[-1]), lost, sigma, cell)
    logs = log_masses(nodes, shifts, sigma)
    base = logs[:, 0]
    if not upper:
        mean = np.expm1(logs[:, 1:] - base[:, None]) @ chances[1:]  # α − 1 as the mean of each cell
        finite = np.isfinite(mean) & np.isfinite(base)
        return Cells(np.maximum(mean[finite], -1.0), np.exp(base[finite]), 0.0, upper=False)
    exponents = (nodes[:, None] * shifts[1:] - shifts[1:] ** 2 / 2) / sigma**2
    return _split(np.exp(base), logs, chances[1:], exponents)


def _split(masses: Array, logs: Array, rest: Array, exponents: Array) -> Cells:
    """Put each cell's mass on its two ends."""
    with np.errstate(over="ignore"):
        at_nodes = np.expm1(exponents) @ rest
    ratios = np.exp(logs[1:-1, 1:] - logs[1:-1, :1] - exponents[:-1])  # of each cell, to its left end
    steps = np.exp(np.diff(exponents, axis=0))
    weights = np.exp(exponents[:-1]) * rest
    part = ((ratios - 1) * weights).sum(1) / ((steps - 1) * weights).sum(1)
    part = np.clip(part, 0.0, 1.0)
    total = np.zeros(len(at_nodes))
    total[:-1] += masses[1:-1] * (1 - part)
    total[1:] += masses[1:-1] * part
    # Beyond the last node: the mass without the record stays there, what is too much with it goes to infinity.
    total[-1] += masses[-1]
    beyond = float(np.sum(rest * np.maximum(np.exp(logs[-1, 1:]) - np.exp(exponents[-1]) * masses[-1], 0.0)))
    # Before the first: the two masses are kept by the first node and by α = 1 − P(s > 0).
    lowest = -float(rest.sum())
    kept = (np.exp(logs[0, 1:] - logs[0, 0]) @ rest) / (np.exp(exponents[0]) @ rest)
    kept = min(max(float(kept), 0.0), 1.0)
    total[0] += masses[0] * kept
    excess = np.concatenate([[lowest], at_nodes])
    total = np.concatenate([[masses[0] * (1 - kept)], total])
    return Cells(np.maximum(excess, -1.0), total, beyond, upper=True)
