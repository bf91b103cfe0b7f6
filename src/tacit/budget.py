"""A hard limit on ε: the release that would pass it never happens."""

from __future__ import annotations

from collections.abc import Iterable

from tacit.accounting import Accountant, Release, create_accountant
from tacit.accounting.events import checked_delta, checked_number
from tacit.errors import BudgetError, ConfigurationError

_MOST = 2**40


class Budget:
    """ε at δ that all releases together must keep to.

    Args:
        epsilon: the limit, above 0.
        delta: strictly between 0 and 1.

    Raises:
        ConfigurationError: an argument is outside its range.
    """

    def __init__(self, epsilon: float, delta: float) -> None:
        self.epsilon = checked_number("epsilon", epsilon)
        self.delta = checked_delta("delta", delta)
        if self.epsilon <= 0:
            raise ConfigurationError(f"epsilon={epsilon!r}: a budget of nothing allows no release. Pass one above 0.")
        self._release: Release | None = None
        self._steps = self._limit = -1

    def check(self, accountant: Accountant, release: Release) -> None:
        """Refuse a release that would pass the limit.

        Raises:
            BudgetError: it would; nothing was recorded.
        """
        if self.remaining(accountant, release) < 1:
            after = _with(accountant, [(release, 1)]).get_epsilon(self.delta)
            raise BudgetError(
                f"this step would bring epsilon to {after:.4f} at delta={self.delta:g}, above the budget of "
                f"{self.epsilon:g}, after {accountant.steps} releases. Nothing was released. Stop training here, or "
                "plan the run with make_private_with_epsilon()."
            )
        self._steps += 1

    def remaining(self, accountant: Accountant, release: Release) -> int:
        """How many more releases like ``release`` keep to the limit. Searched for once, then counted down."""
        if release != self._release or accountant.steps != self._steps:
            self._release, self._steps = release, accountant.steps
            self._limit = accountant.steps + self._search(accountant, release)
        return self._limit - accountant.steps

    def _search(self, accountant: Accountant, release: Release) -> int:
        def fits(count: int) -> bool:
            return _with(accountant, [(release, count)]).get_epsilon(self.delta) <= self.epsilon

        if not fits(1):
            return 0
        low, high = 1, 2
        while high < _MOST and fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low


def _with(accountant: Accountant, more: Iterable[tuple[Release, int]]) -> Accountant:
    """An accountant of the same kind that knows of ``more``, too."""
    other = create_accountant(accountant.mechanism())
    other.replace([*accountant.history, *more])
    return other
