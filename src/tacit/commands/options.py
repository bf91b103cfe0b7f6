"""Options that several commands share, and what they mean together."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, cast

import typer

from tacit import accounting
from tacit.accounting import Adjacency
from tacit.accounting.events import checked_adjacency
from tacit.errors import ConfigurationError

Delta = Annotated[float, typer.Option(help="Failure probability of the bound, well below 1 / dataset size.")]
NoiseMultiplier = Annotated[float | None, typer.Option(help="Noise standard deviation / clipping bound.")]
SampleRate = Annotated[float | None, typer.Option(help="Probability with which a record is in a batch, in (0, 1].")]
Steps = Annotated[int | None, typer.Option(help="Number of noisy optimizer steps.")]
DatasetSize = Annotated[int | None, typer.Option(help="Number of records; instead of rate and steps.")]
BatchSize = Annotated[int | None, typer.Option(help="Expected batch size; with --dataset-size.")]
Epochs = Annotated[int | None, typer.Option(help="Expected passes over the data; with --dataset-size.")]
AccountantName = Annotated[str, typer.Option("--accountant", help="pld (tight), rdp (fast) or prv (= pld).")]
AdjacencyName = Annotated[str, typer.Option("--adjacency", help="add-or-remove-one, zero-out-one or replace-one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object (infinity is null).")]

DEFAULT_ADJACENCY = "add-or-remove-one"


@dataclass(frozen=True, slots=True)
class Schedule:
    """DP-SGD with Poisson sampling, as given on the command line; what is None was left out.

    Either rate and steps are given, or sizes from which they follow.
    """

    noise_multiplier: float | None = None
    sample_rate: float | None = None
    steps: int | None = None
    dataset_size: int | None = None
    batch_size: int | None = None
    epochs: int | None = None

    @property
    def by_sizes(self) -> bool:
        """Whether rate and steps follow from sizes."""
        return self.dataset_size is not None

    @property
    def missing(self) -> list[str]:
        """What is left out, of what is needed."""
        if self.by_sizes:
            found = [name for name in ("noise_multiplier", "batch_size") if getattr(self, name) is None]
            return found + (["epochs"] if self.epochs is None and self.steps is None else [])
        return [name for name in ("noise_multiplier", "sample_rate", "steps") if getattr(self, name) is None]

    def check(self) -> None:
        """Hold that the sampling is given in one way only, and in numbers that describe a run.

        Raises:
            ConfigurationError: it is not.
        """
        sizes = {"batch_size": self.batch_size, "epochs": self.epochs}
        mixed = self.by_sizes and self.sample_rate is not None
        if mixed or (not self.by_sizes and any(value is not None for value in sizes.values())):
            raise ConfigurationError(
                "the sampling is given in two ways, or in half of one: pass --sample-rate and --steps, or else "
                "--dataset-size, --batch-size and --epochs (or --steps)."
            )
        if self.epochs is not None and self.steps is not None:
            raise ConfigurationError("--epochs and --steps both say how long the run is: pass one of them.")
        numbers = {"dataset_size": self.dataset_size, **sizes, "steps": self.steps}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ConfigurationError(f"--{name.replace('_', '-')} is {value}: pass a positive number.")
        if self.dataset_size is not None and self.batch_size is not None and self.batch_size > self.dataset_size:
            raise ConfigurationError(
                f"a batch of {self.batch_size} does not fit a dataset of {self.dataset_size} records."
            )

    def resolved(self) -> tuple[float, float, int]:
        """Noise multiplier, sample rate and steps, where nothing is missing.

        Raises:
            ConfigurationError: something is.
        """
        self.check()
        if self.missing:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in self.missing)
            raise ConfigurationError(f"the privacy cost is unknown without {names}.")
        noise = cast(float, self.noise_multiplier)
        if self.dataset_size is None:
            return noise, cast(float, self.sample_rate), cast(int, self.steps)
        size = cast(int, self.batch_size)
        steps = self.steps or cast(int, self.epochs) * math.ceil(self.dataset_size / size)
        return noise, size / self.dataset_size, steps

    def varied(self, name: str, value: float) -> Schedule:
        """The same run with another value of one number."""
        changes: dict[str, Any] = {name: value}
        return replace(self, **changes)

    def epsilon(self, delta: float, accountant: str, adjacency: Adjacency) -> float:
        """ε of the run."""
        noise, rate, steps = self.resolved()
        return accounting.epsilon(
            noise_multiplier=noise,
            sample_rate=rate,
            steps=steps,
            delta=delta,
            accountant=accountant,
            adjacency=adjacency,
        )

    def given(self) -> dict[str, Any]:
        """What was given, and what follows from it, for JSON."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        if self.by_sizes and self.batch_size is not None and (self.epochs or self.steps):
            _, rate, steps = Schedule(1.0, None, self.steps, self.dataset_size, self.batch_size, self.epochs).resolved()
            found |= {"sample_rate": rate, "steps": steps}
        return found


def adjacency(name: str) -> Adjacency:
    """The neighbouring relation of that name."""
    return checked_adjacency(name)


def show(
    text: str, inputs: dict[str, Any], result: dict[str, Any], *, accountant: str, neighbours: Adjacency, as_json: bool
) -> None:
    """Print a result with what it rests on."""
    mechanism = accounting.create_accountant(accountant).mechanism()
    if as_json:
        report = {"inputs": inputs, "result": result, "adjacency": neighbours, "accountant": mechanism}
        typer.echo(json.dumps(report, allow_nan=False))
    else:
        typer.echo(f"{text} ({mechanism}, {neighbours}, Poisson sampling)")


def finite(value: float) -> float | None:
    """For JSON, which knows no infinity."""
    return value if math.isfinite(value) else None


def upward_digits(value: float) -> str:
    """Four decimals, or four significant digits if small, never below the value."""
    if not math.isfinite(value) or value == 0.0:
        return f"{value:g}"
    digits = max(4, 3 - math.floor(math.log10(value)))
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"


def downward_digits(value: float) -> str:
    """Four significant digits, never above the value."""
    digits = max(0, 3 - math.floor(math.log10(value)))
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"
