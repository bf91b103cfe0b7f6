"""``tacit card`` and ``tacit compare``: privacy statements of runs that are over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tacit.commands.options import AsJson
from tacit.errors import ConfigurationError
from tacit.statement import Statement

_FILE = "privacy.json"

Run = Annotated[Path, typer.Argument(help="A file that engine.statement(delta).to_json() went to, or a demo's folder.")]


def card_command(
    run: Run,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a section for a model card.")] = False,
    as_json: AsJson = False,
) -> None:
    """The privacy statement of a run.

    Example: tacit card runs/demo

    Example: tacit card statement.json --markdown >> MODEL_CARD.md
    """
    statement = _read(run)
    if as_json:
        typer.echo(statement.to_json())
    else:
        typer.echo(statement.markdown if markdown else statement.text)


def compare_command(one: Run, other: Run, as_json: AsJson = False) -> None:
    """What differs between the privacy statements of two runs.

    Example: tacit compare runs/demo runs/other
    """
    facts = [_flat(_read(path).facts) for path in (one, other)]
    names = [name for name in facts[0] | facts[1] if facts[0].get(name) != facts[1].get(name)]
    if as_json:
        typer.echo(json.dumps({name: [part.get(name) for part in facts] for name in names}))
        return
    if not names:
        typer.echo("nothing differs")
        return
    rows = [("", str(one), str(other)), *((name, *(_shown(part.get(name)) for part in facts)) for name in names)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for row in rows:
        typer.echo(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}")


def _read(path: Path) -> Statement:
    file = path / _FILE if path.is_dir() else path
    try:
        return Statement.from_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{file} cannot be read ({error.strerror}): pass a folder with {_FILE}, or a file that "
            "engine.statement(delta).to_json() was written to."
        ) from error
    except (ConfigurationError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: {error}") from error


def _flat(facts: Any, before: str = "") -> dict[str, Any]:
    """Facts by their full names."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
