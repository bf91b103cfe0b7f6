"""Choosing between strategies that are equally exact by trying them once for each shape.

Neither arithmetic nor bytes predict which of a convolution's strategies is the quickest on a machine. Each choice is
kept for the process, and can be looked at. Strategies differ in the last bits of their results, so that two processes
may differ there; with ``torch.use_deterministic_algorithms(True)`` nothing is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager

import torch

Attempt = Callable[[], object]

_RUNS = 2


class Tuner:
    """What was found quickest, by kind and shape.

    Attributes:
        found: for each key, milliseconds by name of the strategy.
    """

    def __init__(self) -> None:
        self.found: dict[Hashable, dict[str, float]] = {}
        self._forced: str | None = None

    def choose(self, key: Hashable, attempts: Mapping[str, Attempt], guess: str) -> str:
        """The name of the quickest attempt.

        Args:
            key: shapes, types and constants: where it is known, nothing is tried.
            attempts: what to try. All must be free of side effects.
            guess: which of them to take where results must be the same in every process.
        """
        if self._forced is not None and self._forced in attempts:
            return self._forced
        if len(attempts) == 1 or torch.are_deterministic_algorithms_enabled():
            return guess if guess in attempts else next(iter(attempts))
        if key not in self.found:
            self.found[key] = {name: _milliseconds(attempt) for name, attempt in attempts.items()}
        times = self.found[key]
        return min((name for name in attempts if name in times), key=times.__getitem__, default=guess)

    @contextmanager
    def forced(self, name: str) -> Iterator[None]:
        """Choose this strategy wherever it is possible, for tests."""
        before, self._forced = self._forced, name
        try:
            yield
        finally:
            self._forced = before


def _milliseconds(attempt: Attempt) -> float:
    best = float("inf")
    for _ in range(_RUNS):
        start = time.perf_counter()
        attempt()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


TUNER = Tuner()
