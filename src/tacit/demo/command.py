"""The command ``tacit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tacit.errors import ConfigurationError

INTERRUPTED = 130
_NEEDED = ("torch", "sklearn", "matplotlib", "jinja2", "rich")


def demo_command(
    epsilon: Annotated[float | None, typer.Option(help="Target epsilon.", show_default="3.0")] = None,
    delta: Annotated[float | None, typer.Option(help="The delta of that epsilon.", show_default="1e-4")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", show_default="20")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Expected batch size.", show_default="240")] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(help="Clipping bound on each image's gradient norm.", show_default="1.0")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of weights and split; noise and sampling stay unpredictable.", show_default="0"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report and the checkpoint.")] = Path("runs/demo"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run saved in --out.")] = False,
) -> None:
    """Train a small network on scanned digits with privacy, beside its plain twin, and write a report.

    Ctrl-C saves the run; --resume goes on with it, its budget intact.
    """
    options = {
        "epsilon": epsilon,
        "delta": delta,
        "epochs": epochs,
        "batch_size": batch_size,
        "max_grad_norm": max_grad_norm,
        "seed": seed,
    }
    try:
        from tacit.demo.run import DemoInterrupt, run_demo
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        raise ConfigurationError(
            f"the demo needs {error.name}, which is not installed: pip install 'tacit[cli]'."
        ) from error
    given = {name: value for name, value in options.items() if value is not None}
    try:
        result = run_demo(given, out, resume=resume)
    except DemoInterrupt as interrupt:
        typer.echo(f"tacit: {interrupt}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(f"report: {result.page}")
    typer.echo(result.line)
