"""The `tacit` command line: privacy arithmetic without writing a program."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from tacit.commands import ledger
from tacit.commands.calibrate import calibrate_command
from tacit.commands.card import card_command, compare_command
from tacit.commands.curve import curve_command
from tacit.commands.epsilon import epsilon_command
from tacit.commands.plan import plan_command
from tacit.demo.command import demo_command
from tacit.errors import TacitError

app = typer.Typer(
    name="tacit",
    help="Train PyTorch models with differential privacy.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; a bad argument is one line on stderr and exit code 2."""
    try:
        app()
    except TacitError as error:
        print(f"tacit: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tacit {version('tacit')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Train PyTorch models with differential privacy."""


app.command("epsilon")(epsilon_command)
app.command("calibrate")(calibrate_command)
app.command("curve")(curve_command)
app.command("card")(card_command)
app.command("compare")(compare_command)
app.command("plan")(plan_command)
app.command("demo")(demo_command)
app.add_typer(ledger.app, name="ledger")

if __name__ == "__main__":
    main()
