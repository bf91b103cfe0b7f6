"""Where the time of a private step goes, beside a plain one.

Parts are timed from outside, in alternation with plain steps. Torch's profiler then says, in steps of its own, which
share of each part was spent outside torch's operators: in Python, in autograd's own work, and in giving memory back to
the system. The profiler adds about a microsecond to each call, so that shares of parts with many small calls come out
too large.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import records
from benchmarks.cases import Case
from benchmarks.contestants import NOISE_MULTIPLIER, Contestant, contestants, quiet
from benchmarks.registry import BY_NAME, QUICK
from benchmarks.stages import NOISE, STAGES, Stopwatch, take_step, watched
from benchmarks.table import digits

WARM_UP, PROFILED = 3, 5
PREFIX = "benchmarks: "
WHOLE = "step"
HEAD = ("case", "part", "plain, ms", "of it Python", "private, ms", "of it Python")


@dataclass(frozen=True)
class Profile:
    """One contestant's step, in seconds.

    Attributes:
        whole: of the step, median over steps.
        parts: by stage, medians over steps.
        shares: by stage, the share of it that was outside torch's operators.
    """

    whole: float
    parts: Mapping[str, float]
    shares: Mapping[str, float]

    def python(self, stage: str) -> float:
        return self.parts[stage] * self.shares.get(stage, 0.0)


def command(given: argparse.Namespace) -> int:
    surroundings = records.environment()
    path = records.new_file(given.out)
    found: dict[str, tuple[Profile, Profile]] = {}
    for name in dict.fromkeys(given.case or QUICK):
        print(f"{name}: {BY_NAME[name].about} …", file=sys.stderr)
        found[name] = both(BY_NAME[name], given.rounds)
        for contestant, each in zip(("plain", "tacit auto"), found[name], strict=True):
            records.append(path, [{**surroundings, "case": name, "contestant": contestant, "profile": asdict(each)}])
    print(", ".join(f"{name} {value}" for name, value in surroundings.items()))
    print(
        f"Medians of {given.rounds} steps. Python is what is outside torch's operators: autograd's own work and giving "
        "memory back are in it.\n"
    )
    print(markdown(found))
    print(f"\n{path}", file=sys.stderr)
    return 0


def both(case: Case, rounds: int) -> tuple[Profile, Profile]:
    """Profiles of a plain step and of one in mode auto."""
    with quiet():
        made = [made for make in contestants(None, ("auto",)) if (made := make(case, NOISE_MULTIPLIER, {})) is not None]
        for contestant in made:
            for _ in range(WARM_UP):
                contestant.step(contestant.draw())
        timed: list[list[dict[str, float]]] = [[] for _ in made]
        for _ in range(rounds):
            for contestant, steps in zip(made, timed, strict=True):
                steps.append(timed_step(contestant))
                contestant.rest()
        plain, private = (
            Profile(median(sum(each.values()) for each in steps), _medians(steps), python_shares(contestant))
            for contestant, steps in zip(made, timed, strict=True)
        )
    return plain, private


def timed_step(contestant: Contestant) -> dict[str, float]:
    batch, watch = contestant.draw(), Stopwatch()
    with watched(watch.span):
        take_step(contestant, batch, watch.span)
    return watch.seconds


def python_shares(contestant: Contestant) -> dict[str, float]:
    """The share of each stage outside torch's operators: medians over steps under the profiler."""

    def span(name: str) -> record_function:
        return record_function(PREFIX + name)

    with watched(span), profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(PROFILED):
            batch = contestant.draw()
            with span(WHOLE):
                take_step(contestant, batch, span)
    events: Any = seen.events()
    return _medians([shares_of(event) for event in events if event.name == PREFIX + WHOLE])


def shares_of(step: Any) -> dict[str, float]:
    """The same of one step, from the profiler's tree of events."""
    whole: Counter[str] = Counter()
    operators: Counter[str] = Counter()

    def count(events: Sequence[Any], stage: str) -> None:
        for event in events:
            length = event.time_range.elapsed_us()
            if event.name.startswith("aten::"):  # what it calls in turn is a part of it
                operators[stage] += length
            elif event.name.startswith(PREFIX):
                inner = event.name.removeprefix(PREFIX)
                whole[inner] += length
                whole[stage] -= length
                count(event.cpu_children, inner)
            else:
                count(event.cpu_children, stage)

    count(step.cpu_children, WHOLE)
    return {stage: 1 - operators[stage] / whole[stage] for stage in STAGES if whole[stage] > 0}


def _medians(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in steps for name in each)
    return {name: median(each.get(name, 0.0) for each in steps) for name in names}


def markdown(found: Mapping[str, tuple[Profile, Profile]]) -> str:
    rows: list[Sequence[str]] = [HEAD, ["---", "---", *["---:"] * 4]]
    for case, (plain, private) in found.items():
        rows.append([case, "step", *_whole(plain), *_whole(private)])
        rows += [["", text, *_cells(plain, stage), *_cells(private, stage)] for stage, text in STAGES.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _whole(each: Profile) -> tuple[str, str]:
    return digits(1e3 * each.whole), digits(1e3 * sum(each.python(stage) for stage in each.parts if stage != NOISE))


def _cells(each: Profile, stage: str) -> tuple[str, str]:
    if stage not in each.parts:
        return "", ""
    return digits(1e3 * each.parts[stage]), "" if stage == NOISE else digits(1e3 * each.python(stage))
