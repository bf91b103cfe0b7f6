"""Box and Muller's transform, noise, rounding and division in one pass over the sums: importing it needs Numba.

Compiled for the processor at hand. Products and sums may be contracted, nothing is reordered: the same version of Numba
makes the same numbers on processors with the same vector functions.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_ROOT_HALF = np.int64(0x3FE6A09E667F3BCD)  # the bits of sqrt(½)
_EXPONENT, _TWO, _QUADRANT = np.int64(52), np.int64(2), np.int64(62)
_ONE = np.int64(1)
_EIGHTH_TURN = math.pi / 4 * 2.0**-63
_LOG_2 = math.log(2.0)


@njit(inline="always", error_model="numpy", fastmath={"contract"})
def _logarithm(u):
    """Of a positive normal number.

    With u = 2ᵉ m and m within a factor √2 of 1, ln m = 2 artanh s for s = (m − 1) / (m + 1), as a polynomial in s²
    through seven Chebyshev nodes: off by under 1e-17 of its size beside rounding.
    """
    bits = np.float64(u).view(np.int64)
    e = (bits - _ROOT_HALF) >> _EXPONENT
    m = np.int64(bits - (e << _EXPONENT)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = 0.18182889125261723 + z * (0.15331721600556042 + z * 0.14616449685043406)
    p = 0.39999999999899505 + z * (0.28571428625975487 + z * (0.2222221113479508 + z * p))
    return np.float64(e) * _LOG_2 + (2.0 * s + s * z * (0.666666666666667 + z * p))


@njit(inline="always", error_model="numpy", fastmath={"contract"})
def _sine(x):
    """Of an angle within ± π/4, through six Chebyshev nodes: off by under 1e-16 beside rounding."""
    y = x * x
    p = 2.755731610255244e-06 + y * (-2.5051131845003624e-08 + y * 1.5918129294866608e-10)
    p = -0.16666666666666666 + y * (0.008333333333330948 + y * (-0.00019841269836758574 + y * p))
    return x + x * y * p


@njit(inline="always", error_model="numpy", fastmath={"contract"})
def _cosine(x):
    """Of an angle within ± π/4, through six Chebyshev nodes: off by under 1e-18 beside rounding."""
    y = x * x
    p = -2.7557317271729793e-07 + y * (2.08761462684032e-09 + y * -1.1382632425521717e-11)
    p = -0.0013888888888887398 + y * (2.480158729876569e-05 + y * p)
    return 1.0 + y * (-0.5 + y * (0.041666666666666664 + y * p))


@njit(inline="always", error_model="numpy", fastmath={"contract"})
def _pair(first, second, deviation):
    """Two words → two normal numbers.

    Of the first word the absolute value K ≤ 2⁶³ is the radius. Of the second the first bit is a sign of both numbers,
    the next exchanges sine and cosine, and the rest is an angle within ± π/4: together an angle on the whole circle.
    """
    u = (abs(np.float64(first)) + 0.5) * 2.0**-63
    r = deviation * math.sqrt(-2.0 * _logarithm(u))
    angle = np.float64(second << _TWO) * _EIGHTH_TURN
    sine, cosine = _sine(angle), _cosine(angle)
    exchanged = ((second >> _QUADRANT) & _ONE) != 0
    r = -r if second < 0 else r
    return r * (sine if exchanged else cosine), r * (cosine if exchanged else sine)


@njit(nogil=True, error_model="numpy", fastmath={"contract"})
def release(words, values, deviation, into, back, weights=None, minus_rate=0.0):
    """Overwrite ``values`` (n,) with ``round(values · into + noise) · back``; ``words`` (2 · ⌈n/2⌉,) are random.

    To ``weights`` (n,), where given, ``minus_rate · values`` is added then, all of one type.
    """
    pairs = words.shape[0] // 2
    radii, angles = words[:pairs], words[pairs:]
    first, second = values[:pairs], values[pairs:]
    if weights is not None:  # decided when it is compiled
        ours, others = weights[:pairs], weights[pairs:]
    for i in range(second.shape[0]):
        one, other = _pair(radii[i], angles[i], deviation)
        first[i] = np.rint(np.float64(first[i]) * into + one) * back
        second[i] = np.rint(np.float64(second[i]) * into + other) * back
        if weights is not None:
            ours[i] += minus_rate * first[i]
            others[i] += minus_rate * second[i]
    for i in range(second.shape[0], pairs):  # of an odd number of values the last
        one, _ = _pair(radii[i], angles[i], deviation)
        first[i] = np.rint(np.float64(first[i]) * into + one) * back
        if weights is not None:
            ours[i] += minus_rate * first[i]
