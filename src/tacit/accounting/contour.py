"""δ(ε) of many releases from the moment generating function of their losses, along a line in the complex plane.

For any θ > 0, with L the sum of all losses, K(s) = ln E_P e^(sL) and s = θ + it (inverse Laplace transform),

    E_P (1 − e^(ε − L))₊ = (1/2π) ∫ e^(K(s) − sε) / (s(s + 1)) dt,

and K is a sum over releases: nothing is put back onto nodes in between. It is found by the trapezoidal rule, after one
more release was added, a Gaussian whose loss has the small variance w², so that the integrand ends soon. With it:

* *upper*: one more release makes δ larger. What the rule adds (aliases: δ at ε ± R, ±2R, …) is positive.
* *lower*: the Gaussian adds at most w·e^(−y²/2w² − y/2)/√2π, where y = L − ε: its transform is w²e^(w²/8) e^(K_G(s)),
  which is taken off inside the integral. (That it is at most so much: δ's own transform grows by
  (e^(K_G) − 1)/(s(s + 1)) = ½∫₀^w² e^(u(s² + s)/2) du, a mean of Gaussian densities of variance u ≤ w².) Aliases are
  bounded by Chernoff's bound at other θ and subtracted.
* the end of the integral: bounded by the Gaussian's, for either side.
* rounding: a model, as in `certified`: each value of E e^(sL) is off by ``_ROUNDED`` of E e^(θL) and its phase by as
  much a radian; what this does to the integral is summed with absolute values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize_scalar

from tacit.accounting.losses import Losses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tacit.accounting.losses import Array

    Complex = NDArray[np.complex128]

_ROUNDED = 64 * 2.0**-53
_SMOOTH = 1.5e-4
"""The variance of the added Gaussian's loss, times (θ + 1) / ε: it moves ε by about half of that."""
_END = 40.0
"""The integrand is followed until the Gaussian has brought it to e^(−40)."""
_LOG_THETAS = (math.log(1e-3), math.log(1e4))
_MOST = 2**15
"""Most frequencies."""


@dataclass(frozen=True)
class Tilted:
    """One distribution, weighed with e^(θL).

    Attributes:
        log: ln E e^(θL).
        weights: ``(n,)``: the masses, which add up to 1.
        mean: of the losses.
        size: how large exponents are on average, for rounding.
    """

    log: float
    weights: Array
    mean: float
    size: float


class Cumulants:
    """K(θ) = ln E_P e^(θL) of all finite losses together.

    Args:
        parts: distributions, each with the number of its releases.
        precision: μ² of the Gaussian mechanism that all unsampled releases are.
    """

    def __init__(self, parts: Sequence[tuple[Losses, int]], precision: float) -> None:
        self.parts = parts
        self.precision = precision
        self._logs = [np.log(losses.masses) for losses, _ in parts]
        self.infinite = -math.expm1(sum(times * math.log1p(-losses.infinite) for losses, times in parts))

    def tilted(self, theta: float) -> list[Tilted]:
        """Each part, weighed with e^(θL)."""
        found = []
        for (losses, _), logs in zip(self.parts, self._logs, strict=True):
            exponents = logs + theta * losses.values
            top = float(exponents.max())
            weights = np.exp(exponents - top)
            total = float(weights.sum())
            weights /= total
            mean = float(weights @ losses.values)
            found.append(Tilted(top + math.log(total), weights, mean, float(weights @ np.abs(exponents))))
        return found

    def chernoff(self, delta: float) -> float:
        """A bound on ε at ``delta``, larger than the chance of an infinite loss: from ``δ(ε) ≤ e^(K(θ) − θε)``."""
        level = math.log(delta - self.infinite)
        found = minimize_scalar(
            lambda x: (self(math.exp(x)) - level) * math.exp(-x), bounds=_LOG_THETAS, method="bounded"
        )
        return max(0.0, float(found.fun))

    def __call__(self, theta: float) -> float:
        return self.of(self.tilted(theta), theta)

    def of(self, tilted: Sequence[Tilted], theta: float) -> float:
        """K(θ), where the parts were weighed already."""
        sampled = sum(t * part.log for (_, t), part in zip(self.parts, tilted, strict=True))
        return sampled + self.precision * (theta * theta + theta) / 2


@dataclass(frozen=True)
class Contour:
    """The integrand at ``s = θ + ikh``, k = 0, 1, …, but for what depends on ε.

    Attributes:
        theta: θ.
        step: h, so that aliases are R = 2π/h apart.
        smooth: w².
        scale: K(θ), with the added Gaussian's.
        slack: a bound on its rounding error.
        mean: what the phases were taken relative to, and how large the numbers were that it is a sum of.
        values: ``(n,)``: e^(K(s) − K(θ)) without that phase.
        wrong: ``(n,)``: a bound on their rounding errors.
        cumulants: of all releases; for Chernoff's bounds.
        end: a bound on what lies beyond the last frequency, in units of e^(K(θ) − θε).
    """

    theta: float
    step: float
    smooth: float
    scale: float
    slack: float
    mean: tuple[float, float]
    values: Complex
    wrong: Array
    cumulants: Cumulants
    end: float

    def delta(self, epsilon: float, *, upper: bool) -> float:
        """A bound on δ at ``epsilon``."""
        t = self.step * np.arange(len(self.values))
        s = self.theta + 1j * t
        kernel = 1 / (s * (s + 1))
        if not upper:
            kernel = kernel - self.smooth * math.exp(self.smooth / 8)
        mean, largest = self.mean
        weights = np.where(t == 0, 1.0, 2.0) * (self.step / (2 * math.pi))
        terms = (self.values * np.exp(1j * t * (mean - epsilon)) * kernel).real
        phase = _ROUNDED * (1 + t * (largest + abs(epsilon)))
        error = float(weights @ (np.abs(kernel) * (self.wrong + np.abs(self.values) * phase))) + self.end
        whole = float(weights @ terms)
        size = math.exp(min(self.scale - self.theta * epsilon, 700.0))
        if upper:
            return self.cumulants.infinite + size * math.exp(self.slack) * (whole + error)
        below = size * math.exp(-self.slack) * (whole - error)
        return self.cumulants.infinite + below - self._aliases(epsilon)

    def _aliases(self, epsilon: float) -> float:
        return _aliases(self.cumulants, self.theta, self.smooth, 2 * math.pi / self.step, epsilon)


def contour(cumulants: Cumulants, epsilon: float) -> Contour | None:
    """The integrand for ε near ``epsilon``; None if it would need too many frequencies."""
    theta = _saddle(cumulants, epsilon)
    smooth = _SMOOTH * max(epsilon, 1e-3) / (theta + 1)
    decay = smooth + cumulants.precision
    tilted = cumulants.tilted(theta)
    step = _step(cumulants, tilted, theta, smooth, epsilon)
    last = math.sqrt(2 * _END / decay)
    count = math.ceil(last / step) + 1
    if count > _MOST:
        return None
    values, wrong = _integrand(cumulants, tilted, decay, step, count)
    means = [times * part.mean for (_, times), part in zip(cumulants.parts, tilted, strict=True)]
    sizes = [times * (1 + part.size) for (_, times), part in zip(cumulants.parts, tilted, strict=True)]
    gaussian = decay * (theta + 0.5)
    top = step * (count - 1)
    end = (1 / top**2 + smooth * math.exp(smooth / 8)) * math.exp(-decay * top * top / 2) / (math.pi * decay * top)
    return Contour(
        theta=theta,
        step=step,
        smooth=smooth,
        scale=cumulants.of(tilted, theta) + smooth * (theta * theta + theta) / 2,
        slack=_ROUNDED * (1 + sum(sizes)),
        mean=(sum(means) + gaussian, sum(map(abs, means)) + gaussian),
        values=values,
        wrong=wrong,
        cumulants=cumulants,
        end=end,
    )


def _integrand(
    cumulants: Cumulants, tilted: Sequence[Tilted], decay: float, step: float, count: int
) -> tuple[Complex, Array]:
    """e^(K(s) − K(θ)) without the phase of the mean, and a bound on its rounding errors."""
    t = step * np.arange(count)
    log_size, phases, loose = -decay * t * t / 2, np.zeros(count), np.zeros(count)
    for (losses, times), part in zip(cumulants.parts, tilted, strict=True):
        centred = losses.values - part.mean
        one = _characteristic(centred, part.weights, step, count)
        size = np.maximum(np.abs(one), 1e-300)
        error = _ROUNDED * (1 + part.size + t * float(part.weights @ np.abs(centred)))
        log_size += times * np.log(size)
        phases += times * np.angle(one)
        loose += times * np.log1p(error / size)
    # |(z + e)^T − z^T| ≤ (|z| + |e|)^T − |z|^T
    wrong = np.exp(np.minimum(log_size + loose, 0.0)) * -np.expm1(-loose)
    return np.exp(log_size + 1j * phases), wrong


def _step(cumulants: Cumulants, tilted: Sequence[Tilted], theta: float, smooth: float, epsilon: float) -> float:
    """h, so small that aliases hardly matter; how much they do is bounded where it counts."""
    variance = smooth + cumulants.precision
    for (losses, times), part in zip(cumulants.parts, tilted, strict=True):
        variance += times * float(part.weights @ (losses.values - part.mean) ** 2)
    period = 10 * math.sqrt(variance)
    size = cumulants.of(tilted, theta) - theta * epsilon - math.log(theta * (theta + 1) * math.sqrt(1 + variance))
    for _ in range(12):
        if _aliases(cumulants, theta, smooth, period, epsilon) <= 1e-6 * math.exp(size):
            break
        period *= 1.4
    return 2 * math.pi / period


def _saddle(cumulants: Cumulants, epsilon: float) -> float:
    """θ where the integrand is smallest at t = 0."""

    def size(log_theta: float) -> float:
        theta = math.exp(log_theta)
        return cumulants(theta) - theta * epsilon - math.log(theta * (theta + 1))

    found = minimize_scalar(size, bounds=_LOG_THETAS, method="bounded", options={"xatol": 1e-3})
    return math.exp(float(found.x))


def _aliases(cumulants: Cumulants, theta: float, smooth: float, period: float, epsilon: float) -> float:
    """A bound on what the rule adds: ``Σ e^(θmR) δ(ε + mR)`` over all whole m but 0.

    Chernoff: ``δ(y) ≤ e^(K(θ₁) − θ₁y)``, at some θ₁ on either side of θ.
    """

    def beyond(other: float) -> float:
        gap = abs(other - theta) * period
        size = cumulants(other) + smooth * (other * other + other) / 2 - other * epsilon - gap
        return math.exp(min(size, 700.0)) / -math.expm1(-gap)

    above = min(beyond(theta * factor) for factor in (1.1, 1.3, 1.7, 2.5, 5.0))
    below = min(beyond(theta * factor) for factor in (0.0, 0.2, 0.4, 0.6, 0.8, 0.9))
    return above + below


def _characteristic(values: Array, weights: Array, step: float, count: int) -> Complex:
    """``Σ_j weights_j e^(i·k·step·values_j)`` for k < count: as a matrix product, k = rows·block + rest."""
    block = math.isqrt(count) + 1
    phases = 1j * step * values
    rest = np.exp(phases[:, None] * np.arange(block))
    rows = np.exp(np.arange(0, count, block)[:, None] * phases) * weights
    found: Complex = (rows @ rest).ravel()[:count]
    return found
