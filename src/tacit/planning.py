"""What a planned run will release, before it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader

from tacit.accounting import EpochRelease, PoissonRelease, Release
from tacit.errors import ConfigurationError
from tacit.sampling import EpochSampling, PoissonSampling, Sampling

History = Sequence[tuple[Release, int]]


def sampling_of(loader: DataLoader[Any], *, poisson: bool) -> Sampling:
    """Return how batches will be drawn from ``loader``'s data set."""
    return PoissonSampling.from_loader(loader) if poisson else EpochSampling.from_loader(loader)


def planned_steps(sampling: Sampling, epochs: int | None, steps: int | None) -> int:
    """Return the number of releases of a run whose length is given in epochs or in steps.

    Raises:
        ConfigurationError: both or none are given, or it is not a whole number of at least 1.
    """
    given = {"epochs": epochs, "steps": steps}
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1:
        raise ConfigurationError("say how long the planned run is: epochs= or steps=, one of them.")
    ((name, value),) = chosen.items()
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name}={value!r}: it must be a whole number of at least 1.")
    return value * sampling.steps_per_epoch if name == "epochs" else value


def planned_history(spent: History, sampling: Sampling, planned: int) -> Callable[[float], History]:
    """Return, as a function of the noise multiplier, all that will have been released after ``planned`` steps.

    Args:
        spent: what was released before.
        sampling: how batches will be drawn.
        planned: number of coming releases.
    """
    first = last_epoch(spent) + 1

    def history(noise: float) -> History:
        if isinstance(sampling, PoissonSampling):
            return [*spent, (PoissonRelease(noise, sampling.sample_rate), planned)]
        whole, rest = divmod(planned, sampling.steps_per_epoch)
        counts = [sampling.steps_per_epoch] * whole + [rest] * bool(rest)
        return [*spent, *((EpochRelease(noise, first + i), count) for i, count in enumerate(counts))]

    return history


def last_epoch(history: History) -> int:
    """Return the highest epoch in ``history``, 0 if none: two epochs of one number would be accounted as one."""
    return max((release.epoch for release, _ in history if isinstance(release, EpochRelease)), default=0)
