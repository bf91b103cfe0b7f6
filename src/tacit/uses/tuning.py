"""Choosing between strategies that are equally exact by trying them once for each shape.

Neither arithmetic nor bytes predict which of a convolution's strategies is the quickest on a machine. Each choice is
kept for the process, and can be looked at. Strategies differ in the last bits of their results, so that two processes
may differ there; with ``torch.use_deterministic_algorithms(True)`` nothing is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Hashable, Iterator, Mapping
from contextlib import contextmanager

import torch

from tacit.timing import quickest
from tacit.uses.base import Use
from tacit.uses.cost import Asked

Attempt = Callable[[], object]

_RUNS = 2

_SHORT, _MORE = 0.02, 4
"""Where no run took so many seconds, there are so many more: on a busy machine two may both have been put off."""


class Tuner:
    """What was found quickest, by kind and shape.

    Attributes:
        found: for each key, milliseconds by name of the strategy.
    """

    def __init__(self) -> None:
        self.found: dict[Hashable, dict[str, float]] = {}
        self._forced: tuple[str, ...] = ()

    def choose(self, key: Hashable, attempts: Mapping[str, Attempt], guess: str) -> str:
        """The name of the quickest attempt.

        Args:
            key: shapes, types and constants: where it is known, nothing is tried.
            attempts: what to try. All must be free of side effects.
            guess: which of them to take where results must be the same in every process.
        """
        forced = self._forced_of(attempts)
        if forced is not None:
            return forced
        if len(attempts) == 1 or torch.are_deterministic_algorithms_enabled():
            return guess if guess in attempts else next(iter(attempts))
        if key not in self.found:
            self.measure(key, attempts)
        times = self.found[key]
        return min((name for name in attempts if name in times), key=times.__getitem__, default=guess)

    def measure(self, key: Hashable, attempts: Mapping[str, Attempt]) -> None:
        """Time each attempt, and keep what was found."""
        self.found[key] = {name: _milliseconds(attempt) for name, attempt in attempts.items()}

    def pick(self, predicted: Mapping[str, float]) -> str:
        """The name of the strategy that is predicted to be the quickest."""
        forced = self._forced_of(predicted) if self._forced else None
        return forced or min(predicted, key=predicted.__getitem__)

    def _forced_of(self, strategies: Container[str]) -> str | None:
        return next((name for name in self._forced if name in strategies), None)

    @contextmanager
    def forced(self, *names: str) -> Iterator[None]:
        """Choose the first of these strategies that is possible, for tests."""
        before, self._forced = self._forced, names
        try:
            yield
        finally:
            self._forced = before


def clip_with(form: Callable[[], Use], device: torch.device, asked: Asked = Asked.BOTH) -> None:
    """All that a clip does with a use, on numbers that do not matter."""
    use = form()
    if asked is not Asked.SUM:
        use.squared_norms()
    if asked is not Asked.NORM:
        use.weighted_sum(torch.ones(use.samples, dtype=torch.float64, device=device), math.inf)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _milliseconds(attempt: Attempt) -> float:
    best = quickest(attempt, _RUNS)
    return 1e3 * (min(best, quickest(attempt, _MORE)) if best < _SHORT else best)


TUNER = Tuner()
