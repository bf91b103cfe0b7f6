"""The method: contestants alternate in rounds, and each round is compared with the plain one beside it.

A machine that others use slows down and speeds up within minutes. Contestants measured one after the other would each
get other weather; in alternation, the ratio within a round is of neighbours in time, and its median over the rounds
is robust against the rounds in which the weather turned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

Clock = Callable[[], float]

MINIMUM_ROUNDS = 3


class Steps(Protocol):
    """What is measured: batches are drawn outside the timed region and trained on inside it."""

    @property
    def name(self) -> str: ...

    def draw(self) -> Any: ...

    def step(self, batch: Any) -> None: ...

    def rest(self) -> None: ...


@dataclass(frozen=True)
class Timing:
    """One round of one contestant, in seconds per step."""

    step: float
    draw: float


@dataclass(frozen=True)
class Measurement:
    """All rounds of one contestant.

    Attributes:
        name: the contestant.
        steps: steps per round.
        rounds: its rounds, the warm-up not among them.
        ratios: round by round, its time over that of the first contestant in the same round.
    """

    name: str
    steps: int
    rounds: tuple[Timing, ...]
    ratios: tuple[float, ...]

    @property
    def milliseconds(self) -> float:
        """Median time of a step."""
        return 1e3 * median(timing.step for timing in self.rounds)

    @property
    def draw_milliseconds(self) -> float:
        """Median time of drawing a batch, which is no part of the step."""
        return 1e3 * median(timing.draw for timing in self.rounds)

    @property
    def ratio(self) -> float:
        """Median of the ratios: not the ratio of the medians, whose rounds may differ."""
        return median(self.ratios)


def measure(
    contestants: Sequence[Steps],
    *,
    rounds: int,
    round_seconds: float = 0.2,
    settle: bool = False,
    clock: Clock = time.perf_counter,
) -> list[Measurement]:
    """Time all contestants in alternation.

    Args:
        contestants: the first is the baseline of the ratios.
        rounds: how many rounds count.
        round_seconds: how long a round of one contestant takes at least, when the machine is as in the warm-up.
        settle: begin each round of each with a step that does not count: between contestants of different sizes,
            the first finds memory in another state.
        clock: returns seconds.
    """
    if rounds < MINIMUM_ROUNDS:
        raise ValueError(f"rounds={rounds}: a median of fewer than {MINIMUM_ROUNDS} says nothing")
    steps = [warm_up(contestant, round_seconds, clock) for contestant in contestants]
    table = [
        [run_round(contestant, count, settle, clock) for contestant, count in zip(contestants, steps, strict=True)]
        for _ in range(rounds)
    ]
    return [
        Measurement(
            contestant.name,
            steps[index],
            tuple(row[index] for row in table),
            tuple(row[index].step / row[0].step for row in table),
        )
        for index, contestant in enumerate(contestants)
    ]


def warm_up(contestant: Steps, round_seconds: float, clock: Clock) -> int:
    """Take a first step that does not count, then find how many steps fill a round."""
    contestant.step(contestant.draw())
    seconds, steps = 0.0, 0
    while not steps or seconds < round_seconds:
        seconds += _timed(contestant, clock).step
        steps += 1
    contestant.rest()
    return steps


def run_round(contestant: Steps, steps: int, settle: bool, clock: Clock) -> Timing:
    if settle:
        contestant.step(contestant.draw())
    timings = [_timed(contestant, clock) for _ in range(steps)]
    contestant.rest()
    return Timing(sum(t.step for t in timings) / steps, sum(t.draw for t in timings) / steps)


def _timed(contestant: Steps, clock: Clock) -> Timing:
    before = clock()
    batch = contestant.draw()
    drawn = clock()
    contestant.step(batch)
    return Timing(clock() - drawn, drawn - before)
