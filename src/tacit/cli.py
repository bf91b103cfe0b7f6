"""The `tacit` command line: privacy arithmetic without writing a program."""

from __future__ import annotations

import json
import math
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer

from tacit import accounting, cli_ledger
from tacit.cli_ledger import AsJson
from tacit.demo.command import demo_command
from tacit.errors import ConfigurationError, TacitError

app = typer.Typer(
    name="tacit",
    help="Train PyTorch models with differential privacy.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Delta = Annotated[float, typer.Option(help="Failure probability of the bound, well below 1 / dataset size.")]
SampleRate = Annotated[float | None, typer.Option(help="Probability with which a record is in a batch, in (0, 1].")]
Steps = Annotated[int | None, typer.Option(help="Number of noisy optimizer steps.")]
DatasetSize = Annotated[int | None, typer.Option(help="Number of records; instead of rate and steps.")]
BatchSize = Annotated[int | None, typer.Option(help="Expected batch size; with --dataset-size.")]
Epochs = Annotated[int | None, typer.Option(help="Expected passes over the data; with --dataset-size.")]
AccountantName = Annotated[str, typer.Option("--accountant", help="pld (tight), rdp (fast) or prv (= pld).")]


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


@app.command("epsilon")
def epsilon_command(
    noise_multiplier: Annotated[float, typer.Option(help="Noise standard deviation / clipping bound.")],
    delta: Delta,
    sample_rate: SampleRate = None,
    steps: Steps = None,
    dataset_size: DatasetSize = None,
    batch_size: BatchSize = None,
    epochs: Epochs = None,
    accountant: AccountantName = "pld",
    as_json: AsJson = False,
) -> None:
    """Epsilon of DP-SGD with Poisson sampling.

    Example: tacit epsilon --noise-multiplier 1.0 --sample-rate 0.01 --steps 1000 --delta 1e-5

    Example: tacit epsilon --noise-multiplier 1.0 --dataset-size 50000 --batch-size 500 --epochs 10
    --delta 1e-5
    """
    plan = _plan(sample_rate, steps, dataset_size, batch_size, epochs)
    rate, count = plan["sample_rate"], plan["steps"]
    found = accounting.epsilon(
        noise_multiplier=noise_multiplier, sample_rate=rate, steps=count, delta=delta, accountant=accountant
    )
    inputs = {"noise_multiplier": noise_multiplier, "delta": delta, **plan}
    text = f"epsilon = {_upward(found)} at delta = {delta:g}"
    _show(text, inputs, {"epsilon": found if math.isfinite(found) else None}, accountant, as_json)


@app.command("calibrate")
def calibrate_command(
    epsilon: Annotated[float, typer.Option(help="Target epsilon, above 0.")],
    delta: Delta,
    sample_rate: SampleRate = None,
    steps: Steps = None,
    dataset_size: DatasetSize = None,
    batch_size: BatchSize = None,
    epochs: Epochs = None,
    accountant: AccountantName = "pld",
    as_json: AsJson = False,
) -> None:
    """Noise multiplier with which DP-SGD with Poisson sampling stays within epsilon.

    Example: tacit calibrate --epsilon 3 --delta 1e-5 --sample-rate 0.01 --steps 1000

    Example: tacit calibrate --epsilon 3 --delta 1e-5 --dataset-size 50000 --batch-size 500 --epochs 10
    """
    plan = _plan(sample_rate, steps, dataset_size, batch_size, epochs)
    rate, count = plan["sample_rate"], plan["steps"]
    noise = accounting.noise_multiplier(
        target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=count, accountant=accountant
    )
    inputs = {"epsilon": epsilon, "delta": delta, **plan}
    text = f"noise multiplier = {_upward(noise)} for epsilon <= {epsilon:g} at delta = {delta:g}"
    _show(text, inputs, {"noise_multiplier": noise}, accountant, as_json)


def _plan(
    sample_rate: float | None,
    steps: int | None,
    dataset_size: int | None,
    batch_size: int | None,
    epochs: int | None,
) -> dict[str, Any]:
    """Sample rate and steps, given directly or derived from sizes."""
    if sample_rate is not None and steps is not None and dataset_size is batch_size is epochs is None:
        return {"sample_rate": sample_rate, "steps": steps}
    if sample_rate is None and steps is None and dataset_size and batch_size and epochs:
        if min(dataset_size, batch_size, epochs) < 1 or batch_size > dataset_size:
            raise ConfigurationError(
                f"dataset size {dataset_size}, batch size {batch_size} and {epochs} epochs describe no "
                "training run: pass positive numbers with a batch no larger than the dataset."
            )
        derived = {
            "sample_rate": batch_size / dataset_size,
            "steps": epochs * math.ceil(dataset_size / batch_size),
        }
        return {"dataset_size": dataset_size, "batch_size": batch_size, "epochs": epochs, **derived}
    raise ConfigurationError(
        "the sampling is not given exactly once, so the privacy cost is unknown: pass --sample-rate and "
        "--steps, or else --dataset-size, --batch-size and --epochs (positive)."
    )


def _upward(value: float) -> str:
    """Four decimals, or four significant digits if small, never below the value."""
    if not math.isfinite(value) or value == 0.0:
        return f"{value:g}"
    digits = max(4, 3 - math.floor(math.log10(value)))
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"


def _show(text: str, inputs: dict[str, Any], result: dict[str, Any], accountant: str, as_json: bool) -> None:
    known = accounting.create_accountant(accountant)
    if as_json:
        report = {
            "inputs": inputs,
            "result": result,
            "adjacency": known.adjacency,
            "accountant": known.mechanism(),
        }
        typer.echo(json.dumps(report, allow_nan=False))
    else:
        typer.echo(f"{text} ({known.mechanism()}, {known.adjacency}, Poisson sampling)")


app.command("demo")(demo_command)
app.add_typer(cli_ledger.app, name="ledger")

if __name__ == "__main__":
    main()
