"""``tacit curve``: epsilon over steps, noise or batch size."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tacit.accounting import create_accountant
from tacit.commands import options
from tacit.commands.options import Schedule, finite, upward_digits
from tacit.errors import ConfigurationError
from tacit.numbers import compact

_BARS = 50


class Over(StrEnum):
    """What the horizontal axis is."""

    steps = "steps"
    epochs = "epochs"
    noise_multiplier = "noise-multiplier"
    batch_size = "batch-size"
    sample_rate = "sample-rate"


def curve_command(
    over: Annotated[Over, typer.Option(help="What is varied; the given value of it is the middle, or the end.")],
    delta: options.Delta,
    noise_multiplier: options.NoiseMultiplier = None,
    sample_rate: options.SampleRate = None,
    steps: options.Steps = None,
    dataset_size: options.DatasetSize = None,
    batch_size: options.BatchSize = None,
    epochs: options.Epochs = None,
    start: Annotated[float | None, typer.Option("--from", help="First value.")] = None,
    stop: Annotated[float | None, typer.Option("--to", help="Last value.")] = None,
    points: Annotated[int, typer.Option(help="How many values.", min=2, max=1000)] = 20,
    png: Annotated[Path | None, typer.Option(help="Write a plot into this file, instead of the terminal.")] = None,
    accountant: options.AccountantName = "pld",
    adjacency: options.AdjacencyName = options.DEFAULT_ADJACENCY,
    as_json: options.AsJson = False,
) -> None:
    """Epsilon of DP-SGD with Poisson sampling, as one number varies.

    Example: tacit curve --over steps --noise-multiplier 1 --sample-rate 0.01 --steps 10000 --delta 1e-5

    Example: tacit curve --over noise-multiplier --noise-multiplier 1 --dataset-size 50000 --batch-size 500
    --epochs 10 --delta 1e-5 --png noise.png
    """
    plan = Schedule(noise_multiplier, sample_rate, steps, dataset_size, batch_size, epochs)
    neighbours = options.adjacency(adjacency)
    name = over.name
    values = _values(plan, name, start, stop, points)
    spent = [plan.varied(name, value).epsilon(delta, accountant, neighbours) for value in values]
    title = f"{create_accountant(accountant).mechanism()}, {neighbours}, Poisson sampling"
    if png is not None:
        _write(png, _plot(over.value, values, spent, delta, title))
    if as_json:
        rows = [{name: value, "epsilon": finite(found)} for value, found in zip(values, spent, strict=True)]
        report = {"over": name, "delta": delta, "curve": rows, "adjacency": neighbours}
        typer.echo(json.dumps(report, allow_nan=False))
    elif png is not None:
        typer.echo(f"{png}: epsilon at delta = {delta:g} over {over.value} ({title})")
    else:
        typer.echo(f"epsilon at delta = {delta:g} over {over.value} ({title})")
        typer.echo("\n".join(_bars(values, spent)))


def _values(plan: Schedule, name: str, start: float | None, stop: float | None, points: int) -> list[float]:
    """Steps and epochs from none to the given one, evenly; others around it, in equal ratios."""
    given = getattr(plan, name)
    if given is None and (start is None or stop is None):
        raise ConfigurationError(f"--{name.replace('_', '-')} is varied: pass it, or --from and --to.")
    even = name in ("steps", "epochs")
    low = start if start is not None else given / points if even else given / 4
    high = stop if stop is not None else given if even else given * 4
    if name == "sample_rate":
        high = min(high, 1.0)
    if name == "batch_size" and plan.dataset_size is not None:
        high = min(high, plan.dataset_size)
    whole = name in ("steps", "epochs", "batch_size")
    low = max(low, 1) if whole else low
    if not 0 < low < high:
        raise ConfigurationError(f"--from {low:g} is not above 0 and below --to {high:g}.")
    shares = [i / (points - 1) for i in range(points)]
    found = [low + (high - low) * share if even else low * (high / low) ** share for share in shares]
    return sorted({round(value) for value in found}) if whole else found


def _bars(values: list[float], spent: list[float]) -> list[str]:
    """The curve in the terminal: a bar for each value."""
    most = max((found for found in spent if finite(found) is not None), default=0.0)
    names = [f"{value:.4g}" if isinstance(value, float) else f"{value}" for value in values]
    width = max(map(len, names))
    numbers = [upward_digits(found) for found in spent]
    right = max(map(len, numbers))
    return [
        f"{name:>{width}}  {number:>{right}}  {'█' * round(_BARS * min(found, most) / most) if most else ''}"
        for name, number, found in zip(names, numbers, spent, strict=True)
    ]


def _plot(over: str, values: list[float], spent: list[float], delta: float, title: str) -> bytes:
    from tacit.report import style

    figure, axes = style.figure()
    axes.plot(values, spent, color=style.PRIVATE, linewidth=2, marker="o", markersize=3)
    if over not in ("steps", "epochs"):
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", fontsize=10, color=style.INK)
    style.label(axes, over.replace("-", " "), f"ε at δ = {compact(delta)}")
    return style.png(figure)


def _write(path: Path, content: Any) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written ({error.strerror}): pass another --png.") from error
