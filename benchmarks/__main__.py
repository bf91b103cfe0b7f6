"""The command line, from the root: ``python -m benchmarks run``, ``scaling``, ``profile`` or ``ranking``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import profiling, ranking, run, scaling
from benchmarks.contestants import CHOICES
from benchmarks.device import DEVICES, present
from benchmarks.registry import BY_NAME, GROUPS, QUICK
from benchmarks.studies import STUDIES

RESULTS = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    _add_run(commands.add_parser("run", help="time private steps beside plain ones"))
    _add_scaling(commands.add_parser("scaling", help="how the cost grows with the batch, the width, and so on"))
    _add_profile(commands.add_parser("profile", help="where the time of a private step goes"))
    _add_ranking(commands.add_parser("ranking", help="predicted and measured costs of forms, on random shapes"))
    for each in commands.choices.values():
        each.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the JSON lines go")
    return top


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_case(parser)
    parser.add_argument("--group", choices=list(GROUPS), default="standard", help="which cases, if none is named")
    parser.add_argument("--against", choices=["opacus"], help="a peer to time as well")
    parser.add_argument("--modes", nargs="+", choices=CHOICES, help="tacit's modes to time (default: auto ghost hooks)")
    parser.add_argument("--device", type=_device, default="cpu", help=f"{' or '.join(DEVICES)} (default: cpu)")
    parser.add_argument("--rounds", type=_rounds, default=run.ROUNDS, help=f"rounds that count (default {run.ROUNDS})")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)} only, and mode auto: under a minute")
    parser.add_argument("--memory", action="store_true", help="peak memory as well, each contestant in its own process")
    parser.add_argument("--plot", action="store_true", help="a bar chart beside the JSON lines")
    parser.set_defaults(work=run.command)


def _add_scaling(parser: argparse.ArgumentParser) -> None:
    names = list(STUDIES)
    parser.add_argument(
        "--dimension", nargs="+", action="extend", choices=names, help="what to double (default: each in turn)"
    )
    parser.add_argument("--rounds", type=_rounds, default=run.ROUNDS, help=f"rounds that count (default {run.ROUNDS})")
    parser.set_defaults(work=scaling.command)


def _add_profile(parser: argparse.ArgumentParser) -> None:
    _add_case(parser)
    parser.add_argument("--rounds", type=_rounds, default=15, help="steps that count (default 15)")
    parser.set_defaults(work=profiling.command)


def _add_ranking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", type=int, default=40, help="how many (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="which (default 0)")
    parser.set_defaults(work=ranking.command)


def _add_case(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--case", nargs="+", action="extend", choices=list(BY_NAME), metavar="NAME", help=", ".join(BY_NAME)
    )


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < run.ROUNDS:
        raise argparse.ArgumentTypeError(f"at least {run.ROUNDS}, not {rounds}")
    return rounds


def _device(text: str) -> str:
    if text not in DEVICES:
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(DEVICES)}")
    if not present(text):
        raise argparse.ArgumentTypeError(f"{text} is not there for this build of PyTorch")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    status: int = given.work(given)
    return status


if __name__ == "__main__":
    sys.exit(main())
