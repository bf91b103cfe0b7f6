"""The Gaussian mechanism in closed form."""

from __future__ import annotations

import math

# Below this sensitivity-to-noise ratio the closed form loses its digits to cancellation.
_SMALLEST_RATIO = 1e-7


def gaussian_log_delta(mu: float, epsilon: float) -> float:
    """log δ(ε) of a Gaussian mechanism with sensitivity / noise ratio `mu` > 0.

    Balle & Wang 2018, arXiv:1805.06530, theorem 8:
    δ(ε) = Φ(μ/2 − ε/μ) − exp(ε) Φ(−μ/2 − ε/μ).
    """
    from scipy.special import log_ndtr

    upper = float(log_ndtr(mu / 2 - epsilon / mu))
    lower = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return upper + math.log(-math.expm1(lower - upper)) if lower < upper else -math.inf


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Smallest ε of a Gaussian mechanism with ratio `mu` >= 0 at `delta`, rounded upward."""
    if mu == 0.0:
        return 0.0
    # Φ(−t) ≤ exp(−t²/2) on the first term alone bounds ε from above.
    ceiling = mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta))
    if not math.isfinite(ceiling) or mu < _SMALLEST_RATIO:
        return ceiling
    log_delta = math.log(delta)
    if gaussian_log_delta(mu, 0.0) <= log_delta:
        return 0.0
    if gaussian_log_delta(mu, ceiling) >= log_delta:
        return ceiling  # only if rounding hides the gap between the bound and the truth

    from scipy.optimize import brentq

    root = brentq(lambda e: gaussian_log_delta(mu, e) - log_delta, 0.0, ceiling, xtol=1e-14, rtol=1e-12)
    return min(ceiling, float(root) * (1 + 1e-9))
