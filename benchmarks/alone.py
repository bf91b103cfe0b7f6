"""One contestant and plain, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.contestants import NOISE_MULTIPLIER, contestants, quiet
from benchmarks.device import clock_of
from benchmarks.measure import Measurement, Timing, measure
from benchmarks.registry import BY_NAME


@dataclass(frozen=True)
class Trial:
    """What the other process is told.

    Attributes:
        case: its name.
        against: the peer, if one was named.
        modes: tacit's modes.
        device: where.
        rounds: rounds that count.
        round_seconds: how long one takes at least.
        sizes: what to replace in the case's sizes.
    """

    case: str
    against: str | None
    modes: Sequence[str]
    device: str
    rounds: int
    round_seconds: float = 0.2
    sizes: dict[str, Any] = field(default_factory=dict)


def pair(trial: Trial, place: int) -> list[Measurement]:
    """Plain and the contestant at ``place``, in this process; plain only, if the peer cannot take part."""
    with quiet():
        makers = contestants(trial.against, trial.modes, trial.device)
        both = [makers[each](BY_NAME[trial.case], NOISE_MULTIPLIER, trial.sizes) for each in (0, place)]
        taking_part = [made for made in both if made is not None]
        return measure(
            taking_part, rounds=trial.rounds, round_seconds=trial.round_seconds, clock=clock_of(trial.device)
        )


def one_by_one(trial: Trial, count: int) -> list[Measurement]:
    """All ``count`` contestants, each against its own plain; the first of the plain ones comes first."""
    pairs = [_elsewhere(trial, place) for place in range(1, count)]
    return [pairs[0][0], *(contestant for _, *rest in pairs for contestant in rest)]


def _elsewhere(trial: Trial, place: int) -> list[Measurement]:
    command = [sys.executable, "-m", "benchmarks.alone", json.dumps(asdict(trial)), str(place)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [_measurement(each) for each in json.loads(done.stdout.splitlines()[-1])]


def _measurement(given: dict[str, Any]) -> Measurement:
    rounds = tuple(Timing(**timing) for timing in given["rounds"])
    return Measurement(given["name"], given["steps"], rounds, tuple(given["ratios"]))


if __name__ == "__main__":
    found = pair(Trial(**json.loads(sys.argv[1])), int(sys.argv[2]))
    print(json.dumps([asdict(each) for each in found]))
