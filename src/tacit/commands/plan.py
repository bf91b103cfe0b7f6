"""``tacit plan``: what training of a model will take, before a machine is hired for it."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tacit.commands.options import AsJson
from tacit.scaling.setting import GIB, Mode, Optimizer, Setting, Sharding

if TYPE_CHECKING:
    from tacit.scaling.forecast import Forecast

_WIDTH = 120


class PrivateMode(StrEnum):
    """Ways to clip."""

    auto = "auto"
    ghost = "ghost"
    per_layer = "per_layer"


class Precision(StrEnum):
    """Types that a forward may compute in. Parameters, gradients and the optimizer's state are float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Rates(StrEnum):
    """Whose rates decide between forms."""

    default = "default"
    here = "here"


def plan_command(
    model_config: Annotated[Path, typer.Option(help="config.json of a Hugging Face causal language model.")],
    world_size: Annotated[int, typer.Option(help="Number of processes.", min=1)] = 1,
    batch_size: Annotated[int, typer.Option(help="Sequences in a physical batch of one process.", min=1)] = 1,
    length: Annotated[int, typer.Option(help="Tokens in a sequence.", min=2)] = 1024,
    dtype: Annotated[Precision, typer.Option(help="What the forward computes in.")] = Precision.bfloat16,
    mode: Annotated[PrivateMode, typer.Option(help="How gradients are clipped.")] = PrivateMode.auto,
    sharding: Annotated[Sharding, typer.Option(help="What several processes share out.")] = Sharding.ddp,
    memory: Annotated[float | None, typer.Option(help="GiB that one process has.", min=0.0)] = None,
    optimizer: Annotated[Optimizer, typer.Option(help="SGD is without momentum.")] = Optimizer.adamw,
    rates: Annotated[
        Rates, typer.Option(help="Rates that choose forms: the cost model's own, or this machine's, measured.")
    ] = Rates.default,
    as_json: AsJson = False,
) -> None:
    """Estimate memory, communication and forms of a private training from shapes alone; nothing is allocated.

    Example: tacit plan --model-config config.json --world-size 64 --sharding fsdp --length 4096 --memory 80
    """
    from tacit.scaling.forecast import Forecast
    from tacit.scaling.models import build, read_config, token_loss
    from tacit.scaling.summary import facts
    from tacit.scaling.survey import survey

    config = read_config(model_config)
    model = build(config, _dtype(dtype))
    found = survey(model, token_loss(model, config, batch_size, length))
    setting = Setting(world_size, sharding, Mode(mode.value), optimizer)
    forecast = Forecast(found, setting, _costs(rates), None if memory is None else memory * GIB)
    if as_json:
        typer.echo(json.dumps({**facts(forecast), "length": length, "dtype": dtype}, allow_nan=False))
        return
    head = f"{config['model_type']}, {batch_size} × {length} tokens in each process, {dtype}, {optimizer}"
    _show(forecast, head, rates)


def _dtype(name: Precision) -> Any:
    import torch

    return {Precision.float32: torch.float32, Precision.bfloat16: torch.bfloat16}[name]


def _costs(rates: Rates) -> Any:
    import torch

    from tacit.uses import DEFAULT_COSTS, costs_of

    if rates is Rates.default:
        return DEFAULT_COSTS
    return costs_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float32)


def _show(forecast: Forecast, head: str, rates: Rates) -> None:
    from tacit.scaling.summary import advice

    console = Console(width=_WIDTH, highlight=False)
    console.print(f"{head}; {forecast.survey.numbers:,} parameters")
    how = forecast.setting.text.rsplit(",", 1)[0]
    console.print(f"{how}. Estimates, from shapes alone: docs/scaling.md has the formulas.")
    console.print(_memory(forecast))
    if forecast.traffic:
        console.print(_sent(forecast))
    console.print(_kinds(forecast, rates))
    for line in advice(forecast):
        console.print(f"- {line}", markup=False)


def _memory(forecast: Forecast) -> Table:
    table = Table("GiB of one process", title="Memory", title_justify="left")
    for name in ("no checkpointing", "checkpointing", "not private", "not private, checkpointing"):
        table.add_column(name, justify="right")
    columns = [forecast.with_setting(checkpointing=on) for on in (False, True)]
    columns += [each.plain for each in columns]
    estimates = [each.estimate for each in columns]
    for name in dict.fromkeys(name for each in estimates for name in each.state):
        table.add_row(name, *(_gib(each.state.get(name)) for each in estimates))
    table.add_row("beside these, the most at once", *(_gib(max(each.moments.values())) for each in estimates))
    table.add_row("  which is in", *(each.worst for each in estimates))
    activations = forecast.survey.activations
    waiting = (_gib(activations.waiting(checkpointing=each.setting.checkpointing)) for each in columns)
    table.add_row("  activations when the backward begins", *waiting)
    table.add_row("  held by the gates when it ends", *(_gib(each.held) for each in columns), end_section=True)
    table.add_row("together", *(_gib(each.total) for each in estimates))
    if forecast.memory is not None:
        table.add_row(f"fits into {_gib(forecast.memory)} GiB", *("yes" if each.fits else "no" for each in columns))
    return table


def _sent(forecast: Forecast) -> Table:
    table = Table("GB of one process in one step", title="Communication", title_justify="left")
    for name in ("handed over", "sent, in a ring", "not private: handed over", "sent, in a ring"):
        table.add_column(name, justify="right")
    plain = {each.name: each for each in forecast.plain.traffic}
    for each in forecast.traffic:
        other = plain.get(each.name)
        numbers = (each.handed, each.sent, *((other.handed, other.sent) if other else (0, 0)))
        table.add_row(each.name, *(f"{size / 1e9:.2f}" if size >= 1e7 else f"{size} B" for size in numbers))
    return table


def _kinds(forecast: Forecast, rates: Rates) -> Table:
    whose = "a CPU's, as the cost model assumes" if rates is Rates.default else "this machine's"
    pace = f"{forecast.costs.flops_per_second:.1e} operations and {forecast.costs.far_bytes_per_second:.1e} bytes/s"
    title = f"Forms of per-sample gradients; ms of all layers at {pace} ({whose})"
    table = Table(title=title, title_justify="left")
    table.add_column("parameters", no_wrap=True)
    table.add_column("shape", justify="right")
    table.add_column("count", justify="right")
    table.add_column("kept as")
    table.add_column("GiB held" if forecast.setting.mode is Mode.auto else "GiB, in turn", justify="right")
    table.add_column("predicted, ms")
    for kind in forecast.kinds:
        times = ", ".join(f"{form} {1e3 * seconds:.0f}" for form, seconds in kind.seconds.items())
        size = kind.held if forecast.setting.mode is Mode.auto else kind.held // kind.count
        shape = "×".join(map(str, kind.shape))
        table.add_row(kind.pattern, shape, str(kind.count), kind.strategy, f"{size / GIB:.3f}", times)
    return table


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / GIB:.2f}"
