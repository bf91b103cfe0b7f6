"""A hard limit on ε: the release that would pass it never happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from tacit.accounting import Accountant, Release, create_accountant
from tacit.accounting.checks import checked_delta, checked_number
from tacit.errors import BudgetError, ConfigurationError

_MOST = 2**40

Coming = Callable[[int], Iterable[tuple[Release, int]]]
"""The history of so many coming releases, from the next one on."""


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
        self._approved: Counter[Release] = Counter()
        self._steps = -1

    def check(self, accountant: Accountant, release: Release, coming: Coming, *, most: int = _MOST) -> None:
        """Refuse a release that would pass the limit.

        How many more fit is searched for once; what was found to fit together is then only counted down.

        Args:
            accountant: knows what was released.
            release: the one in question.
            coming: what is planned; if it does not begin with ``release``, that is looked at alone.
            most: how many coming releases to look at.

        Raises:
            BudgetError: it would; nothing was recorded.
        """
        if accountant.steps != self._steps or not self._approved[release]:
            self._approved = Counter()
            for planned, count in coming(self.remaining(accountant, coming, most=most)):
                self._approved[planned] += count
            if not self._approved[release]:
                self._refuse_beyond(accountant, release)
                self._approved = Counter({release: 1})
        self._approved[release] -= 1
        self._steps = accountant.steps + 1

    def remaining(self, accountant: Accountant, coming: Coming, *, most: int = _MOST) -> int:
        """How many of the coming releases keep to the limit; at most ``most`` are looked at."""

        def fits(count: int) -> bool:
            return _with(accountant, coming(count)).get_epsilon(self.delta) <= self.epsilon

        if not fits(1):
            return 0
        low, high = 1, min(2, most)
        while low < high and fits(high):
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _refuse_beyond(self, accountant: Accountant, release: Release) -> None:
        after = _with(accountant, [(release, 1)]).get_epsilon(self.delta)
        if after > self.epsilon:
            raise BudgetError(
                f"this step would bring epsilon to {after:.4f} at delta={self.delta:g}, above the budget of "
                f"{self.epsilon:g}, after {accountant.steps} releases. Nothing was released. Stop training here, or "
                "plan the run with make_private_with_epsilon()."
            )


def _with(accountant: Accountant, more: Iterable[tuple[Release, int]]) -> Accountant:
    """An accountant of the same kind that knows of ``more``, too."""
    other = create_accountant(accountant.mechanism(), accountant.wanted_adjacency)
    other.replace([*accountant.history, *more])
    return other
