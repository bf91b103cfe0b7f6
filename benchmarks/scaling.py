"""How the cost grows: one dimension doubles, the others stay, and slopes of log time are put beside theory.

All values of a dimension take turns in the same rounds: were they timed one after the other, slopes would be of the
weather.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from benchmarks import records
from benchmarks.cases import Case
from benchmarks.contestants import Contestant, contestants, quiet
from benchmarks.measure import Measurement, measure
from benchmarks.studies import STUDIES, Study, Theory
from benchmarks.table import digits

ROUND_SECONDS = 0.05
NAMES = ("plain", "tacit auto", "tacit auto, no noise")
SUMMARY = ("cost against", "values", "plain", "theory", "private", "added by the clip", "theory", "noise", "theory")
DETAILS = ("", "value", "clip reads", "plain, ms", "private, ×", "without noise, ×", "its arithmetic, ×")


@dataclass(frozen=True)
class Point:
    """One value of the dimension; seconds are medians over rounds, of differences within a round."""

    value: int
    theory: Theory
    plain: float
    private: float
    clip: float
    noise: float
    ratio: float
    quiet_ratio: float


def command(given: argparse.Namespace) -> int:
    surroundings = records.environment()
    path = records.new_file(given.out)
    found: dict[str, list[Point]] = {}
    for name in dict.fromkeys(given.dimension or STUDIES):
        print(f"{name}: {STUDIES[name].about} {STUDIES[name].values} …", file=sys.stderr)
        measured = run(STUDIES[name], given.rounds, ROUND_SECONDS)
        for value, three in measured.items():
            marks = {**surroundings, "study": name, "value": value}
            records.append(path, [records.record(STUDIES[name].at(value), each, marks) for each in three])
        found[name] = [point(STUDIES[name], value, three) for value, three in measured.items()]
    print(", ".join(f"{name} {value}" for name, value in surroundings.items()))
    print(f"Median of {given.rounds} rounds. Slopes of log seconds against log value: 1 is proportional, 0 constant.\n")
    print(summary(found))
    print(f"\n{details(found)}")
    print(f"\n{path}", file=sys.stderr)
    return 0


def run(study: Study, rounds: int, round_seconds: float) -> dict[int, list[Measurement]]:
    """At each value plain, private, and private with a noise multiplier of 0."""
    with quiet():
        made = [contestant for value in study.values for contestant in _three(study.at(value))]
        measured = measure(made, rounds=rounds, round_seconds=round_seconds, settle=True)
    count = len(NAMES)
    return {
        value: [_beside(measured[place], each) for each in measured[place : place + count]]
        for value, place in zip(study.values, range(0, len(measured), count), strict=True)
    }


def _three(case: Case) -> list[Contestant]:
    plain, private = contestants(None, ("auto",))
    made = [make(case, noise, {}) for make, noise in ((plain, 1.0), (private, 1.0), (private, 0.0))]
    return [replace(each, name=name) for each, name in zip(made, NAMES, strict=True) if each is not None]


def _beside(plain: Measurement, each: Measurement) -> Measurement:
    """With its ratios to the plain step of the same size, not to that of the first."""
    return replace(each, ratios=tuple(a.step / b.step for a, b in zip(each.rounds, plain.rounds, strict=True)))


def point(study: Study, value: int, measured: Sequence[Measurement]) -> Point:
    plain, private, silent = ([timing.step for timing in each.rounds] for each in measured)
    return Point(
        value,
        study.theory_at(value),
        median(plain),
        median(private),
        _median_difference(silent, plain),
        _median_difference(private, silent),
        measured[1].ratio,
        measured[2].ratio,
    )


def _median_difference(more: Sequence[float], less: Sequence[float]) -> float:
    return median(a - b for a, b in zip(more, less, strict=True))


def slope(values: Sequence[float], costs: Sequence[float]) -> float:
    """The least-squares slope of log cost against log value; NaN if a cost is not positive."""
    if min(costs) <= 0:
        return math.nan
    x, y = [math.log(value) for value in values], [math.log(cost) for cost in costs]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return rise / sum((a - middle_x) ** 2 for a in x)


def summary(found: Mapping[str, Sequence[Point]]) -> str:
    rows: list[Sequence[Any]] = []
    for name, points in found.items():
        values = [each.value for each in points]
        theories = [each.theory for each in points]
        slopes = (
            slope(values, [each.plain for each in points]),
            slope(values, [each.operations for each in theories]),
            slope(values, [each.private for each in points]),
            slope(values, [each.clip for each in points]),
            slope(values, [each.clip_seconds for each in theories]),
            slope(values, [each.noise for each in points]),
            slope(values, [each.parameters for each in theories]),
        )
        about = STUDIES[name].about
        label = name if about == name else f"{name} ({about})"
        rows.append([label, f"{values[0]}–{values[-1]}", *(_number(each) for each in slopes)])
    return _markdown(SUMMARY, rows, left=2)


def details(found: Mapping[str, Sequence[Point]]) -> str:
    rows = [
        [
            "" if index else name,
            each.value,
            each.theory.form,
            digits(1e3 * each.plain),
            f"{each.ratio:.2f}",
            f"{each.quiet_ratio:.2f}",
            f"{each.theory.ratio:.2f}",
        ]
        for name, points in found.items()
        for index, each in enumerate(points)
    ]
    return _markdown(DETAILS, rows, left=1)


def _number(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int) -> str:
    rule = ["---" if index < left else "---:" for index in range(len(head))]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (head, rule, *rows))
