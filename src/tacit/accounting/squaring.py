"""Composition by squaring: all sums of two losses, put back onto nodes; sums of positive numbers only.

It needs no tilt, nothing in it oscillates or cancels, and it is what the faster `contour` is held to in tests.
"""

from __future__ import annotations

import math
from functools import lru_cache

from tacit.accounting.cells import Direction
from tacit.accounting.composition import Composition
from tacit.accounting.grouping import grouped
from tacit.accounting.losses import Losses, Mesh, compose
from tacit.accounting.pairs import Pair
from tacit.accounting.releases import PoissonRelease
from tacit.accounting.steps import step_losses

FINE, COARSE = Mesh(0.02, 0.0075, 0.03), Mesh(0.06, 0.03, 0.06)
TAIL = 1e-3
"""The part of δ that may be cut off as tails."""
MOST = 256
"""Most kinds of releases that are composed each by itself."""
_MANY = 8


def squared(composition: Composition, delta: float, direction: Direction, *, upper: bool) -> Losses:
    """The losses of all releases together.

    Args:
        composition: what was released.
        delta: tails are cut so that a δ of this size is not changed by much.
        direction: see `step_losses`.
        upper: whether they dominate the truth, or the truth dominates them.
    """
    mesh = FINE if len(composition.sampled) <= _MANY else COARSE  # errors of many kinds average out
    sampled = grouped(composition.sampled, MOST, upper=upper)
    lost = rounded(TAIL * delta / (4 * (len(sampled) + 1)))
    parts = []
    for release, times in sampled.items():
        levels = (times - 1).bit_length()
        levels += levels % 2  # shared by the next longer histories
        each = lost / (2**levels * (2 * levels + 1))
        parts.append(_copies(release, times, direction, upper, mesh, each))
    if composition.precision:
        gaussian = PoissonRelease(composition.precision**-0.5, 1.0)
        parts.append(step_losses(gaussian, direction, upper=upper, lost=lost, mesh=mesh))
    while len(parts) > 1:  # pairwise, so that each passes few nodes
        pairs = [compose(one, other, mesh=mesh, lost=lost) for one, other in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + (parts[-1:] if len(parts) % 2 else [])
    return parts[0]


@lru_cache(maxsize=2048)
def _copies(release: Pair, times: int, direction: Direction, upper: bool, mesh: Mesh, each: float) -> Losses:
    """``times`` releases, by squaring. Each of the 2 log₂(times) + 1 levels may cut ``each`` for each release."""
    if times == 1:
        return step_losses(release, direction, upper=upper, lost=each, mesh=mesh)
    last = times & -times
    if last == times:
        half = _copies(release, times // 2, direction, upper, mesh, each)
        return compose(half, half, mesh=mesh, lost=each * times)
    first = _copies(release, times - last, direction, upper, mesh, each)
    return compose(first, _copies(release, last, direction, upper, mesh, each), mesh=mesh, lost=each * times)


def rounded(lost: float) -> float:
    """A power of ten at most as large, so that nearby δ share what was computed."""
    return float(10.0 ** math.floor(math.log10(lost)))
