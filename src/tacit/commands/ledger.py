"""``tacit ledger``: what is on record for a data set."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tacit.accounting import create_accountant
from tacit.commands.options import AsJson
from tacit.ledger import Ledger
from tacit.numbers import downward, upward

app = typer.Typer(help="What was released over a data set, run by run.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="The ledger file.")]


@app.command("show")
def show(path: File, as_json: AsJson = False) -> None:
    """The data set and its runs.

    Example: tacit ledger show mail.ledger
    """
    found = Ledger.existing(path).summary()
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"{found['name']}: {found['records']:,} records, {len(found['runs'])} runs")
    for run in found["runs"]:
        last = "" if run["last"] is None else f" to {_when(run['last'])}"
        typer.echo(f"  run {run['run']}: {run['releases']:,} releases, {_when(run['began'])}{last}, {run['code']}")
        typer.echo(f"    {run['sampler']}")
        typer.echo(f"    noise: {run['noise']}")


@app.command("epsilon")
def epsilon(
    path: File,
    delta: Annotated[float, typer.Option(help="Probability with which epsilon may fail.")],
    as_json: AsJson = False,
) -> None:
    """Epsilon of all runs together, as an interval that contains it.

    Example: tacit ledger epsilon mail.ledger --delta 1e-6
    """
    accountant = create_accountant("pld")
    accountant.replace(Ledger.existing(path).history())
    found = accountant.get_interval(delta)
    if as_json:
        result: dict[str, Any] = {
            "lower": found.lower if found.lower != float("inf") else None,
            "upper": found.upper if found.upper != float("inf") else None,
            "method": found.method,
            "delta": delta,
            "adjacency": accountant.adjacency,
            "releases": accountant.steps,
        }
        typer.echo(json.dumps(result, allow_nan=False))
        return
    typer.echo(
        f"epsilon <= {upward(found.upper, 4)} (at least {downward(found.lower, 4)}) at delta = {delta:g}, for "
        f"{accountant.steps:,} releases ({found.method}, {accountant.adjacency})"
    )


@app.command("export")
def export(path: File) -> None:
    """Every release as one JSON object a line.

    Example: tacit ledger export mail.ledger > releases.jsonl
    """
    for row in Ledger.existing(path).rows():
        sys.stdout.write(json.dumps(row) + "\n")


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
