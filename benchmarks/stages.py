"""The parts of a step, watched from outside: tacit's own functions are wrapped while a profile is taken."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks.contestants import Contestant
from tacit import step as step_module
from tacit.capture.guard import LeakGuard
from tacit.rules import conv
from tacit.step import ClippedUses, Clipper, Releaser
from tacit.uses import Outer

Span = Callable[[str], AbstractContextManager[Any]]
"""Is entered with the name of a part, for as long as it runs. Parts run within parts."""

FORWARD, BACKWARD, FORMED, NORMS, SUMS = "forward", "backward", "formed", "norms", "sums"
CHECKS, NOISE, RELEASE, OPTIMIZER = "checks", "noise", "release", "optimizer"

STAGES = {
    FORWARD: "forward and loss",
    BACKWARD: "backward: input gradients and what is not below",
    FORMED: "whole gradients of single samples",
    NORMS: "norms and factors",
    SUMS: "clipped sums",
    CHECKS: "checks of what is in `.grad`",
    NOISE: "noise",
    RELEASE: "records of the release",
    OPTIMIZER: "optimizer",
}

_WATCHED: tuple[tuple[Any, str, str], ...] = (
    (Outer, "stored", FORMED),
    (conv, "weight_use", FORMED),
    (Clipper, "__call__", NORMS),
    (ClippedUses, "sum", SUMS),
    (LeakGuard, "expect", CHECKS),
    (LeakGuard, "accept", CHECKS),
    (LeakGuard, "check_untouched", CHECKS),
    (step_module, "add_gaussian_noise", NOISE),
    (Releaser, "__call__", RELEASE),
)


@contextmanager
def watched(span: Span) -> Iterator[None]:
    """Enter ``span`` around each part of a private step."""
    with ExitStack() as stack:
        for owner, name, stage in _WATCHED:
            stack.enter_context(patch.object(owner, name, _within(span, stage, getattr(owner, name))))
        yield


def _within(span: Span, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with span(stage):
            return function(*args, **kwargs)

    return call


def take_step(contestant: Contestant, batch: Any, span: Span) -> None:
    """What :meth:`Contestant.step` does, in parts."""
    inputs, labels = batch
    with span(OPTIMIZER):
        contestant.optimizer.zero_grad()
    with span(FORWARD):
        loss = contestant.criterion(contestant.model(inputs), labels)
    with span(BACKWARD):
        loss.backward()
    with span(OPTIMIZER):
        contestant.optimizer.step()


class Stopwatch:
    """Seconds of each part, without those of the parts within it.

    Attributes:
        seconds: by part.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def span(self, stage: str) -> Iterator[None]:
        self._turn()
        self._open.append(stage)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        """Give the time since the last turn to the innermost part."""
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now
