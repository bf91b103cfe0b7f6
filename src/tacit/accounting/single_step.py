"""One step of DP-SGD as two privacy loss distributions: one that dominates it, and one that it dominates.

Without the record a release is N(0, σ²); with it, it is N(s, σ²) with s ~ Binomial(draws, q): for one draw the
Poisson-sampled Gaussian. The likelihood ratio α(x) between them increases in x. The line is cut into cells:

* *down*: a cell becomes one atom, with its masses under both (data processing);
* *up*: the mass of a cell is put on its two ends, so that both masses are kept ("connect the dots": Doroshenko et al.
  2022, arXiv:2207.04380). What is beyond the last node is put there and at α = ∞; before the first, there and at α = 0.

All is computed in terms of α − 1, which is proportional to q, so that nothing is lost at q = 1e-7.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import log_ndtr

from tacit.accounting.composition import sensitivities
from tacit.accounting.events import PoissonRelease
from tacit.accounting.losses import Losses

if TYPE_CHECKING:
    from tacit.accounting.losses import Array

Direction = Literal["remove", "add"]


def single_step(release: PoissonRelease, direction: Direction, *, upper: bool, lost: float, cell: float) -> Losses:
    """The losses of one release.

    Args:
        release: what was released.
        direction: "remove": P is with the record and Q without; "add": the other way round.
        upper: which bound.
        lost: mass that may lie beyond the outermost nodes.
        cell: width of a cell in standard deviations.
    """
    sigma = release.noise_multiplier
    shifts, chances = (np.asarray(part) for part in sensitivities(release))
    reach = math.sqrt(-2 * math.log(min(lost, 0.1))) * sigma
    nodes = np.arange(-reach, float(shifts[-1]) + reach + cell * sigma, cell * sigma)
    # log-masses of the cells (tails included) under each N(s, σ²): (cells, shifts)
    logs = _log_masses(nodes[:, None], shifts, sigma)
    base = logs[:, 0]
    # α − 1 as the mean of each cell, and at the nodes
    mean = np.expm1(logs[:, 1:] - base[:, None]) @ chances[1:]
    exponents = (nodes[:, None] * shifts[1:] - shifts[1:] ** 2 / 2) / sigma**2
    with np.errstate(over="ignore"):
        at_nodes = np.expm1(exponents) @ chances[1:]
    if not upper:
        return _merged(base, mean, direction)
    return _split(np.exp(base), logs, chances, at_nodes, exponents, direction)


def _log_masses(nodes: Array, shifts: Array, sigma: float) -> Array:
    """ln of the masses of (−∞, x₀), [x₀, x₁), …, [xₙ, ∞), each on the side where nothing cancels."""
    z = (nodes - shifts) / sigma
    below, above = log_ndtr(z), log_ndtr(-z)
    left = z[1:] <= 0
    larger = np.where(left, below[1:], above[:-1])
    smaller = np.where(left, below[:-1], above[1:])
    inner = larger + np.log(-np.expm1(smaller - larger))
    return np.concatenate([below[:1], inner, above[-1:]])


def _losses(excess: Array, masses: Array, direction: Direction, infinite: float, *, upper: bool) -> Losses:
    """Atoms with ratio 1 + excess and their masses without the record."""
    with np.errstate(divide="ignore"):
        losses = np.log1p(excess)
    if direction == "remove":
        weights = masses * (1 + excess)
    else:
        losses, weights = -losses, masses
        infinite = float(weights[np.isposinf(losses)].sum()) if upper else 0.0
    there = (weights > 0) & np.isfinite(losses)
    order = np.argsort(losses[there], kind="stable")
    return Losses(losses[there][order], weights[there][order], infinite, upper)


def _merged(base: Array, mean: Array, direction: Direction) -> Losses:
    finite = np.isfinite(mean) & np.isfinite(base)
    return _losses(np.maximum(mean[finite], -1.0), np.exp(base[finite]), direction, 0.0, upper=False)


def _split(
    masses: Array, logs: Array, chances: Array, at_nodes: Array, exponents: Array, direction: Direction
) -> Losses:
    """Put each cell's mass on its two ends."""
    rest = chances[1:]
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
    return _losses(np.maximum(excess, -1.0), total, direction, beyond, upper=True)
