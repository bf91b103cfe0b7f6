"""Epsilon as an interval that contains the truth.

The upper end is the ε of distributions that dominate what was released, the lower that of distributions which it
dominates (`steps`, `losses`), the larger over the two directions: a record added, a record removed. They are composed
by `contour`, and by `squaring` where that does not do: a single release, or too many frequencies.

What stands between the ends and the truth:

* cells and nodes: proved to err to the named side (see there); they make the interval wide.
* the contour's discretisation: proved, see there.
* pairs: each kind of release names the proof that its pair dominates. For truncated batches and for those of fixed
  size no data are known that have the same pair, so that the lower end is that of another one, which some data have.
* cut tails: proved; the mass is moved to infinity, at most a thousandth of δ in all.
* rounding: a *model*. Masses are sums and products of positive numbers, so relative errors of single operations
  (2⁻⁵³) add up and do not grow; ``ROUNDING`` allows for a thousand times what was seen against closed forms. On the
  contour numbers oscillate, and the errors of single ones are summed there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tacit.accounting.cells import Direction
from tacit.accounting.composition import Composition
from tacit.accounting.contour import Contour, Cumulants, contour
from tacit.accounting.gaussian import gaussian_epsilon, gaussian_log_delta
from tacit.accounting.grouping import grouped
from tacit.accounting.intervals import Interval
from tacit.accounting.losses import Mesh
from tacit.accounting.pairs import chance, symmetric, unamplified
from tacit.accounting.rdp import rdp_epsilon
from tacit.accounting.squaring import MOST, TAIL, rounded, squared
from tacit.accounting.steps import step_losses

ROUNDING = 1e-9
"""Relative slack for rounding, on δ and on ε."""

_CURVE = 1e-15
"""The δ for which tails are cut when δ is wanted at many ε."""
_DIRECTIONS: tuple[Direction, ...] = ("remove", "add")
_LARGEST_EXPONENT = 600.0
_CELLS, _WIDE_CELLS = Mesh(0.02, 0.0075, 0.02), Mesh(0.06, 0.03, 0.06)
_MANY = 8
_ROUNDS = 8
_WIDE = 8e-3


def certified_epsilon(composition: Composition, delta: float) -> Interval:
    """The ε at ``delta`` of a composition that is neither empty nor without noise.

    Args:
        composition: what was released.
        delta: strictly between 0 and 1.
    """
    if not composition.sampled:
        found = gaussian_epsilon(math.sqrt(composition.precision), delta)
        return Interval(found * (1 - ROUNDING), found, "closed form")
    if _chance(composition) <= delta and not composition.precision:
        return Interval(0.0, 0.0, "closed form")  # with probability 1 − δ the record is in no batch at all
    if not _carried(composition, delta):
        return Interval(0.0, rdp_epsilon(composition, delta), "rdp")
    ends = contour_epsilon(composition, delta)
    if ends is None or ends[1] - ends[0] > max(_WIDE * ends[1], _WIDE / 10):  # such as for heavy tails of few releases
        squared_ends = squared_epsilon(composition, delta)
        ends = squared_ends if ends is None else (max(ends[0], squared_ends[0]), min(ends[1], squared_ends[1]))
    if math.isinf(ends[1]):
        return Interval(0.0, rdp_epsilon(composition, delta), "rdp")
    drift = _drift(composition)
    lower, upper = max(0.0, ends[0] * (1 - ROUNDING) - drift), ends[1] * (1 + ROUNDING) + drift
    return Interval(lower, upper, "certified composition")


def squared_epsilon(composition: Composition, delta: float) -> tuple[float, float]:
    """Both ends by squaring, but for rounding."""
    ends = []
    for upper, level in ((False, delta * (1 + ROUNDING)), (True, delta * (1 - ROUNDING))):
        ways = _directions(composition)
        ends.append(max(squared(composition, delta, way, upper=upper).epsilon(level) for way in ways))
    return ends[0], ends[1]


def contour_epsilon(composition: Composition, delta: float) -> tuple[float, float] | None:
    """Both ends by contour integrals, but for the rounding of cells; None where they do not answer."""
    if sum(composition.sampled.values()) == 1 and not composition.precision:
        return None  # losses of one release need no composition
    ends: list[float] = []
    for upper, level in ((True, delta * (1 - ROUNDING)), (False, delta * (1 + ROUNDING))):
        worst = 0.0
        for way in _directions(composition):
            cumulants = _cumulants(composition, delta, way, upper=upper)
            # Most often the second direction is the cheaper one, which one integral shows.
            if worst and (line := contour(cumulants, worst)) and line.delta(worst, upper=upper) <= level:
                continue
            found = _solved(cumulants, level, ends, upper=upper)
            if found is None:
                return None
            worst = max(worst, found)
        ends.append(worst)
    return ends[1], ends[0]


def _solved(cumulants: Cumulants, delta: float, near: Sequence[float], *, upper: bool) -> float | None:
    """The ε of one bound; any contour is right, one through the saddle at ε is good."""
    if cumulants.infinite >= delta:
        return None
    most = cumulants.chernoff(delta)
    guess, best = (near[0], 0.0) if near else (most, most)
    for _ in range(_ROUNDS):
        line = contour(cumulants, guess)
        if line is None:
            return None
        found = _crossing(line, delta, guess, most, upper=upper)
        best = min(best, found) if upper else max(best, found)
        if abs(found - guess) <= 0.01 * guess or not found:
            return best
        guess = found
    return best


def _crossing(line: Contour, delta: float, guess: float, most: float, *, upper: bool) -> float:
    """An ε near ``guess`` where the bound is at most ``delta`` (or, for a lower bound, above it; else 0).

    Far from its saddle a contour is right, but of no use: the search goes outwards from there.
    """
    low = high = guess
    part = 0.01
    while line.delta(high, upper=upper) > delta:
        if high >= most:
            return most if upper else high
        low, high, part = high, min(most, high * (1 + part)), 2 * part
    while low == high or line.delta(low, upper=upper) <= delta:
        if part > 16:
            return high if upper else 0.0
        low, high, part = low / (1 + part), low, 2 * part
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if line.delta(middle, upper=upper) > delta else (low, middle)
    return high if upper else low


def _cumulants(composition: Composition, delta: float, direction: Direction, *, upper: bool) -> Cumulants:
    sampled = grouped(composition.sampled, MOST, upper=upper)
    mesh = _CELLS if len(sampled) <= _MANY else _WIDE_CELLS
    lost = TAIL * delta / (4 * len(sampled))
    parts = [
        (step_losses(pair, direction, upper=upper, lost=rounded(lost / times), mesh=mesh), times)
        for pair, times in sampled.items()
    ]
    return Cumulants(parts, composition.precision)


def _directions(composition: Composition) -> tuple[Direction, ...]:
    return _DIRECTIONS[:1] if all(map(symmetric, composition.sampled)) else _DIRECTIONS


def certified_delta(composition: Composition, epsilon: float) -> Interval:
    """The δ at ``epsilon`` of a composition that is neither empty nor without noise."""
    if not composition.sampled:
        log_delta = gaussian_log_delta(math.sqrt(composition.precision), epsilon)
        found = math.exp(log_delta)
        return Interval(found * (1 - 1e-6), min(1.0, found * (1 + 1e-6)), "closed form")
    guess, most = _magnitude(composition, epsilon)
    if not _carried(composition, guess):
        return Interval(0.0, most, "rdp")
    drift = _drift(composition) + ROUNDING * epsilon
    ends = []
    for upper, at in ((False, epsilon + drift), (True, max(0.0, epsilon - drift))):
        ways = _directions(composition)
        ends.append(max(_delta(composition, guess, way, at, upper=upper) for way in ways))
    lower, highest = ends[0] * (1 - ROUNDING), min(1.0, ends[1] * (1 + ROUNDING))
    return Interval(max(0.0, lower), highest, "certified composition")


def _magnitude(composition: Composition, epsilon: float) -> tuple[float, float]:
    """A δ well below the one at ``epsilon``, which says how much tail may be cut; and a bound on it."""
    low, high = 1e-30, 1.0
    while high / low > 10:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if rdp_epsilon(composition, middle) > epsilon else (low, middle)
    return low * 1e-3, high


def _delta(composition: Composition, size: float, direction: Direction, epsilon: float, *, upper: bool) -> float:
    """One bound on δ in one direction; tails are cut so that a δ of ``size`` is not changed by much."""
    if sum(composition.sampled.values()) > 1 or composition.precision:
        line = contour(_cumulants(composition, size, direction, upper=upper), epsilon)
        if line is not None:
            return line.delta(epsilon, upper=upper)
    return squared(composition, size, direction, upper=upper).delta(epsilon)


def upper_curve(composition: Composition, epsilons: Sequence[float]) -> list[tuple[float, float]]:
    """Pairs (ε, an upper bound on δ), of a composition that is neither empty nor without noise.

    Composed once for all ε. Where floats cannot carry it, the pairs are those of RDP at a range of δ instead.
    """
    if not composition.sampled:
        mu = math.sqrt(composition.precision)
        return [(eps, min(1.0, math.exp(gaussian_log_delta(mu, eps)) * (1 + 1e-6))) for eps in epsilons]
    if not _carried(composition, _CURVE):
        return [(rdp_epsilon(composition, delta), delta) for delta in (10.0**-k for k in range(1, 21))]
    drift = _drift(composition)
    both = [squared(composition, _CURVE, direction, upper=True) for direction in _directions(composition)]
    found = []
    for eps in epsilons:
        shifted = max(0.0, eps * (1 - ROUNDING) - drift)
        found.append((eps, min(1.0, max(losses.delta(shifted) for losses in both) * (1 + ROUNDING))))
    return found


def _chance(composition: Composition) -> float:
    """A bound on the probability that a record is drawn at all."""
    return math.fsum(chance(pair) * times for pair, times in composition.sampled.items())


def _carried(composition: Composition, delta: float) -> bool:
    """Whether floats hold the largest likelihood ratio that matters, and the smallest masses."""
    releases = sum(composition.sampled.values()) + 1
    reach = math.sqrt(-2 * math.log(rounded(TAIL * delta / (4 * releases)) / releases))
    ratios = [unamplified(pair) for pair in composition.sampled]
    ratios.append(math.sqrt(composition.precision))
    return all(ratio * ratio / 2 + ratio * reach < _LARGEST_EXPONENT for ratio in ratios) and reach < 36


def _drift(composition: Composition) -> float:
    """How far rounding of cell masses may move the mean loss: 1e-13 of q a step, in nats."""
    return 1e-13 * _chance(composition) + 1e-12
