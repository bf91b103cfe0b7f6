"""A line cut into cells: the common part of all single steps.

A step is given by a measure without the record and the likelihood ratio α against it. From the masses of cells one gets

* *down*: each cell becomes one atom, with its masses under both (data processing);
* *up*: the mass of a cell is put on its two ends, so that both masses are kept ("connect the dots": Doroshenko et al.
  2022, arXiv:2207.04380). What is beyond the last node is put there and at α = ∞; before the first, there and at α = 0.

All is held in terms of α − 1, which is proportional to the sample rate, so that nothing is lost at a rate of 1e-7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import log_ndtr

from tacit.accounting.losses import Losses

if TYPE_CHECKING:
    from tacit.accounting.losses import Array

Direction = Literal["remove", "add"]


@dataclass(frozen=True)
class Cells:
    """Atoms of the likelihood ratio.

    Attributes:
        excess: ``(n,)``: α − 1, at least −1.
        masses: ``(n,)``: their probabilities without the record.
        beyond: the probability with the record of α = ∞.
        upper: whether this pair dominates the true one; else the true one dominates it.
    """

    excess: Array
    masses: Array
    beyond: float
    upper: bool

    def losses(self, direction: Direction) -> Losses:
        """The losses of "remove" (P is with the record, Q without) or of "add" (the other way round)."""
        with np.errstate(divide="ignore"):
            losses = np.log1p(self.excess)
        infinite = self.beyond
        if direction == "remove":
            weights = self.masses * (1 + self.excess)
        else:
            losses, weights = -losses, self.masses
            infinite = float(weights[np.isposinf(losses)].sum()) if self.upper else 0.0
        there = (weights > 0) & np.isfinite(losses)
        order = np.argsort(losses[there], kind="stable")
        return Losses(losses[there][order], weights[there][order], infinite, self.upper)


def line(shift: float, lost: float, sigma: float, cell: float) -> Array:
    """Nodes every ``cell`` deviations, from where at most ``lost`` lies before N(0, σ²), to beyond N(shift, σ²).

    One of them is the middle of the two, exactly: there the likelihood ratio of a single draw is 1.
    """
    reach = math.sqrt(-2 * math.log(min(lost, 0.1))) * sigma
    step = cell * sigma
    middle = 0.5 * min(shift, 1.0)
    first = -math.ceil((reach + middle) / step)
    last = math.ceil((shift + reach - middle) / step)
    return np.asarray(middle + step * np.arange(first, last + 1), dtype=np.float64)


def log_masses(nodes: Array, shifts: Array, sigma: float) -> Array:
    """ln of the masses of (−∞, x₀), [x₀, x₁), …, [xₙ, ∞) under each N(s, σ²), on the side where nothing cancels.

    Args:
        nodes: ``(n + 1,)``.
        shifts: ``(k,)``: the s.
        sigma: σ.

    Returns:
        ``(n + 2, k)``.
    """
    z = (nodes[:, None] - shifts) / sigma
    below, above = log_ndtr(z), log_ndtr(-z)
    left = z[1:] <= 0
    larger = np.where(left, below[1:], above[:-1])
    smaller = np.where(left, below[:-1], above[1:])
    inner = larger + np.log(-np.expm1(smaller - larger))
    return np.concatenate([below[:1], inner, above[-1:]])
