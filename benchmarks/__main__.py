"""The command line: ``python -m benchmarks run``, from the root of the repository."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import memory, records, table
from benchmarks.cases import BY_NAME, CASES, Case
from benchmarks.contestants import MODES, NOISE_MULTIPLIER, Make, contestants, quiet
from benchmarks.measure import MINIMUM_ROUNDS, Measurement, measure

ROUNDS = 7
QUICK_ROUNDS = 3
RESULTS = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    run = top.add_subparsers(dest="command", required=True).add_parser("run", help="time private steps")
    run.add_argument(
        "--case", nargs="+", action="extend", choices=list(BY_NAME), metavar="NAME", help=", ".join(BY_NAME)
    )
    run.add_argument("--against", choices=["opacus"], help="a peer to time as well")
    run.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="tacit's modes to time (default: all)")
    run.add_argument("--rounds", type=_rounds, help=f"rounds that count (default {ROUNDS})")
    run.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds: a look, not a result")
    run.add_argument("--memory", action="store_true", help="peak memory as well, each contestant in its own process")
    run.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the JSON lines go")
    return top


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < MINIMUM_ROUNDS:
        raise argparse.ArgumentTypeError(f"at least {MINIMUM_ROUNDS}, not {rounds}")
    return rounds


def run_case(case: Case, makers: Sequence[Make], rounds: int) -> list[Measurement]:
    with quiet():
        all_made = [make(case, NOISE_MULTIPLIER, {}) for make in makers]
        return measure([made for made in all_made if made is not None], rounds=rounds)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    chosen = [BY_NAME[name] for name in dict.fromkeys(given.case)] if given.case else CASES
    makers = contestants(given.against, given.modes)
    surroundings = records.environment()
    path = records.new_file(given.out)
    results: dict[str, list[Measurement]] = {}
    for case in chosen:
        print(f"{case.name}: {case.about} …", file=sys.stderr)
        results[case.name] = run_case(case, makers, rounds)
        records.append(path, [records.record(case, each, surroundings) for each in results[case.name]])
    print(", ".join(f"{name} {value}" for name, value in surroundings.items()))
    print(f"Median of {rounds} rounds; × plain: median of the ratios within a round.\n")
    print(table.markdown(results))
    if given.memory:
        print("\nPeak memory beyond the model:\n")
        print(memory.markdown({case.name: memory.measured(case.name, given.against, given.modes) for case in chosen}))
    print(f"\n{path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
