"""Epsilon as an interval that contains the truth.

The upper end is the ε of distributions that dominate what was released, the lower that of distributions which it
dominates (`steps`, `losses`), the larger over the two directions: a record added, a record removed.

What stands between the ends and the truth:

* cells and nodes: proved to err to the named side (see there); they make the interval wide.
* pairs: each kind of release names the proof that its pair dominates. For truncated batches and for those of fixed
  size no data are known that have the same pair, so that the lower end is that of another one, which some data have.
* cut tails: proved; the mass is moved to infinity, at most a thousandth of δ in all.
* rounding: a *model*. Every number is a sum or product of positive numbers, so relative errors of single operations
  (2⁻⁵³) add up and do not grow; ``ROUNDING`` allows for a thousand times what was seen against closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from tacit.accounting.cells import Direction
from tacit.accounting.composition import Composition
from tacit.accounting.gaussian import gaussian_epsilon, gaussian_log_delta
from tacit.accounting.grouping import grouped
from tacit.accounting.intervals import Interval
from tacit.accounting.losses import Losses, Mesh, compose
from tacit.accounting.pairs import Pair, chance, symmetric, unamplified
from tacit.accounting.rdp import rdp_epsilon
from tacit.accounting.releases import PoissonRelease
from tacit.accounting.steps import step_losses

ROUNDING = 1e-9
"""Relative slack for rounding, on δ and on ε."""

_TAIL = 1e-3
_CURVE = 1e-15
"""The δ for which tails are cut when δ is wanted at many ε."""
_DIRECTIONS: tuple[Direction, ...] = ("remove", "add")
_LARGEST_EXPONENT = 600.0
FINE, COARSE, ROUGH = Mesh(0.02, 0.0075, 0.03), Mesh(0.06, 0.03, 0.06), Mesh(0.12, 0.06, 0.12)
_MANY, _MOST = 8, 256


def certified_epsilon(composition: Composition, delta: float, *, lower: bool = True) -> Interval:
    """The ε at ``delta`` of a composition that is neither empty nor without noise.

    Args:
        composition: what was released.
        delta: strictly between 0 and 1.
        lower: whether the lower end is wanted, which costs as much again; else it is 0.
    """
    if not composition.sampled:
        found = gaussian_epsilon(math.sqrt(composition.precision), delta)
        return Interval(found * (1 - ROUNDING), found, "closed form")
    if _chance(composition) <= delta and not composition.precision:
        return Interval(0.0, 0.0, "closed form")  # with probability 1 − δ the record is in no batch at all
    if not _carried(composition, delta):
        return Interval(0.0, rdp_epsilon(composition, delta), "rdp")
    strict, loose = delta * (1 - ROUNDING), delta * (1 + ROUNDING)
    mesh = _mesh(composition)
    upper = _composed(composition, delta, "remove", mesh, upper=True).epsilon(strict)
    directions: list[Direction] = ["remove"]
    # Adding a record is almost always the cheaper direction: a rough bound shows it at a tenth of the price.
    if not (
        all(map(symmetric, composition.sampled))
        or _composed(composition, delta, "add", ROUGH, upper=True).epsilon(strict) <= upper
    ):
        upper = max(upper, _composed(composition, delta, "add", mesh, upper=True).epsilon(strict))
        directions.append("add")
    if math.isinf(upper):
        return Interval(0.0, rdp_epsilon(composition, delta), "rdp")
    below = 0.0
    if lower:
        ends = [_composed(composition, delta, way, mesh, upper=False).epsilon(loose) for way in directions]
        below = max(0.0, max(ends) * (1 - ROUNDING) - _drift(composition))
    return Interval(below, upper * (1 + ROUNDING) + _drift(composition), "certified composition")


def certified_delta(composition: Composition, epsilon: float) -> Interval:
    """The δ at ``epsilon`` of a composition that is neither empty nor without noise."""
    if not composition.sampled:
        log_delta = gaussian_log_delta(math.sqrt(composition.precision), epsilon)
        found = math.exp(log_delta)
        return Interval(found * (1 - 1e-6), min(1.0, found * (1 + 1e-6)), "closed form")
    low, high = 1e-30, 1.0
    for _ in range(40):  # how much tail may be cut depends on δ: find its magnitude first
        middle = math.sqrt(low * high)
        if high / low < 10:
            break
        low, high = (middle, high) if rdp_epsilon(composition, middle) > epsilon else (low, middle)
    guess = low * 1e-3
    if not _carried(composition, guess):
        return Interval(0.0, high, "rdp")
    drift = _drift(composition) + ROUNDING * epsilon
    ends = [
        [
            _composed(composition, guess, direction, _mesh(composition), upper=upper).delta(max(0.0, epsilon + shift))
            for direction in _DIRECTIONS
        ]
        for upper, shift in ((False, drift), (True, -drift))
    ]
    lower, upper = max(ends[0]) * (1 - ROUNDING), min(1.0, max(ends[1]) * (1 + ROUNDING))
    return Interval(max(0.0, lower), upper, "certified composition")


def upper_curve(composition: Composition, epsilons: Sequence[float]) -> list[tuple[float, float]]:
    """Pairs (ε, an upper bound on δ), of a composition that is neither empty nor without noise.

    Composed once for all ε. Where floats cannot carry it, the pairs are those of RDP at a range of δ instead.
    """
    if not composition.sampled:
        mu = math.sqrt(composition.precision)
        return [(eps, min(1.0, math.exp(gaussian_log_delta(mu, eps)) * (1 + 1e-6))) for eps in epsilons]
    if not _carried(composition, _CURVE):
        return [(rdp_epsilon(composition, delta), delta) for delta in (10.0**-k for k in range(1, 21))]
    mesh, drift = _mesh(composition), _drift(composition)
    both = [_composed(composition, _CURVE, direction, mesh, upper=True) for direction in _DIRECTIONS]
    found = []
    for eps in epsilons:
        shifted = max(0.0, eps * (1 - ROUNDING) - drift)
        found.append((eps, min(1.0, max(losses.delta(shifted) for losses in both) * (1 + ROUNDING))))
    return found


def _mesh(composition: Composition) -> Mesh:
    """With many different releases each is put on a coarser mesh: their errors average out."""
    return FINE if len(composition.sampled) <= _MANY else COARSE


def _composed(composition: Composition, delta: float, direction: Direction, mesh: Mesh, *, upper: bool) -> Losses:
    """All releases together."""
    sampled = grouped(composition.sampled, _MOST, upper=upper)
    lost = _rounded(_TAIL * delta / (4 * (len(sampled) + 1)))
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


def _rounded(lost: float) -> float:
    """A power of ten at most as large, so that nearby δ share what was computed."""
    return float(10.0 ** math.floor(math.log10(lost)))


def _chance(composition: Composition) -> float:
    """A bound on the probability that a record is drawn at all."""
    return math.fsum(chance(pair) * times for pair, times in composition.sampled.items())


def _carried(composition: Composition, delta: float) -> bool:
    """Whether floats hold the largest likelihood ratio that matters, and the smallest masses."""
    releases = sum(composition.sampled.values()) + 1
    reach = math.sqrt(-2 * math.log(_rounded(_TAIL * delta / (4 * releases)) / releases))
    ratios = [unamplified(pair) for pair in composition.sampled]
    ratios.append(math.sqrt(composition.precision))
    return all(ratio * ratio / 2 + ratio * reach < _LARGEST_EXPONENT for ratio in ratios) and reach < 36


def _drift(composition: Composition) -> float:
    """How far rounding of cell masses may move the mean loss: 1e-13 of q a step, in nats."""
    return 1e-13 * _chance(composition) + 1e-12
