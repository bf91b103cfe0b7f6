"""How the cost grows: one dimension doubles, the others stay, and slopes of log time are put beside theory."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks import records
from benchmarks.cases import Case
from benchmarks.contestants import Contestant, contestants, quiet
from benchmarks.measure import Measurement, measure
from benchmarks.studies import STUDIES, Study, Theory
from benchmarks.table import digits

ROUND_SECONDS = 0.1
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
        found[name] = []
        for value in STUDIES[name].values:
            case = STUDIES[name].at(value)
            measured = run(case, given.rounds, ROUND_SECONDS)
            marks = {**surroundings, "study": name, "value": value}
            records.append(path, [records.record(case, each, marks) for each in measured])
            found[name].append(point(STUDIES[name], value, measured))
    print(", ".join(f"{name} {value}" for name, value in surroundings.items()))
    print(f"Median of {given.rounds} rounds. Slopes of log seconds against log value: 1 is proportional, 0 constant.\n")
    print(summary(found))
    print(f"\n{details(found)}")
    print(f"\n{path}", file=sys.stderr)
    return 0


def run(case: Case, rounds: int, round_seconds: float) -> list[Measurement]:
    """Plain, private, and private with a noise multiplier of 0, in alternation."""
    plain, private = contestants(None, ("auto",))
    with quiet():
        made = [
            _named(make(case, noise, {}), name)
            for make, noise, name in zip((plain, private, private), (1.0, 1.0, 0.0), NAMES, strict=True)
        ]
        return measure(made, rounds=rounds, round_seconds=round_seconds)


def _named(contestant: Contestant | None, name: str) -> Contestant:
    assert contestant is not None
    contestant.name = name
    return contestant


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
