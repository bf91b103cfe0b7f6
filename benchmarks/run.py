"""Private steps beside plain ones: a table, JSON lines, and what was asked for of memory and a plot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import alone, device, memory, plot, records, table
from benchmarks.alone import Trial
from benchmarks.cases import Case
from benchmarks.contestants import MODES, NOISE_MULTIPLIER, Make, contestants, quiet
from benchmarks.measure import Measurement, measure
from benchmarks.registry import BY_NAME, GROUPS, QUICK

ROUNDS = 7
QUICK_MODES = ("auto",)


def command(given: argparse.Namespace) -> int:
    modes = given.modes or (QUICK_MODES if given.quick else MODES)
    makers = contestants(given.against, modes, given.device)
    surroundings = records.environment(given.device)
    path = records.new_file(given.out)
    results: dict[str, list[Measurement]] = {}
    for case in chosen(given):
        print(f"{case.name}: {case.about} …", file=sys.stderr)
        trial = Trial(case.name, given.against, modes, given.device, given.rounds)
        results[case.name] = run_case(case, makers, trial)
        records.append(path, [records.record(case, each, surroundings) for each in results[case.name]])
    print(", ".join(f"{name} {value}" for name, value in surroundings.items()))
    print(f"Median of {given.rounds} rounds; × plain: median of the ratios within a round.\n")
    print(table.markdown(results))
    if given.memory:
        peaks = {name: memory.measured(name, given.against, modes, given.device) for name in results}
        for name, rows in peaks.items():
            records.append(path, [records.memory_record(BY_NAME[name], *row, surroundings) for row in rows])
        print("\nPeak memory beyond the model:\n")
        print(memory.markdown(peaks))
    if given.plot:
        plot.save(results, path.with_suffix(".svg"))
        print(f"\n{path.with_suffix('.svg')}", file=sys.stderr)
    print(f"\n{path}", file=sys.stderr)
    return 0


def chosen(given: argparse.Namespace) -> Sequence[Case]:
    if given.case:
        return [BY_NAME[name] for name in dict.fromkeys(given.case)]
    return [BY_NAME[name] for name in QUICK] if given.quick else GROUPS[given.group]


def run_case(case: Case, makers: Sequence[Make], trial: Trial) -> list[Measurement]:
    if case.alone:
        return alone.one_by_one(trial, len(makers))
    with quiet():
        all_made = [make(case, NOISE_MULTIPLIER, trial.sizes) for make in makers]
        return measure(
            [made for made in all_made if made is not None],
            rounds=trial.rounds,
            round_seconds=trial.round_seconds,
            clock=device.clock_of(trial.device),
        )
