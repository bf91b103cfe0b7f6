"""Numbers in words."""

from __future__ import annotations

import math


def upward(value: float, decimals: int = 3) -> str:
    """``value`` with so many decimals, never below it: a bound that is printed stays a bound."""
    if not math.isfinite(value):
        return "infinity"
    shown = math.ceil(value * 10**decimals - 1e-9) / 10**decimals
    return f"{shown:.{decimals}f}"


def downward(value: float, decimals: int = 3) -> str:
    """``value`` with so many decimals, never above it."""
    return f"{math.floor(value * 10**decimals) / 10**decimals:.{decimals}f}" if math.isfinite(value) else "infinity"


def compact(value: float) -> str:
    """A number in few characters: ``0.5``, ``1e-4``, ``2.5e-5``."""
    if value == 0 or abs(value) >= 0.01:
        return f"{value:g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def percent(fraction: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{100 * fraction:.1f} %"
