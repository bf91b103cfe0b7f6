"""What a planned run will release, before it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader

from tacit.accounting import Release
from tacit.accounting.events import epoch_of
from tacit.errors import ConfigurationError
from tacit.sampling import (
    BallsInBinsSampling,
    EpochSampling,
    FixedSizeSampling,
    FullBatchSampling,
    PoissonSampling,
    Sampling,
    TruncatedPoissonSampling,
    check_source,
    whole,
)

History = Sequence[tuple[Release, int]]

SAMPLINGS: dict[str, Callable[[DataLoader[Any]], Sampling]] = {
    "poisson": PoissonSampling.from_loader,
    "truncated-poisson": TruncatedPoissonSampling.from_loader,
    "balls-in-bins": BallsInBinsSampling.from_loader,
    "fixed-size": FixedSizeSampling.from_loader,
    "full-batch": FullBatchSampling.from_loader,
    "epochs": EpochSampling.from_loader,
}
"""Ways of drawing that need no more than a loader; the others are made by hand."""


def sampling_of(loader: DataLoader[Any], *, sampling: str | Sampling | None = None, poisson: bool = True) -> Sampling:
    """Return how batches will be drawn from ``loader``'s data set.

    Args:
        loader: the user's loader. Of several processes each has one, over the whole data set; batches are drawn from
            all of it, and are as large as theirs in sum.
        sampling: what the user asked for.
        poisson: what ``poisson_sampling`` says, which counts where ``sampling`` is None.

    Raises:
        ConfigurationError: both were said, or no such sampling is known.
        SamplingError: the loader's data set or batches do not go with it.
    """
    if sampling is not None and not poisson:
        raise ConfigurationError(
            'poisson_sampling=False is sampling="epochs" (the loader\'s own batches): say one of them only.'
        )
    if isinstance(sampling, Sampling):
        check_source(whole(loader), poisson=False)
        return sampling
    name = sampling or ("poisson" if poisson else "epochs")
    if not isinstance(name, str) or name not in SAMPLINGS:
        raise ConfigurationError(
            f"sampling={sampling!r} is not known. Known are {', '.join(map(repr, SAMPLINGS))}, and objects from "
            "tacit.sampling such as CyclicPoissonSampling, UserPoissonSampling and WeightedPoissonSampling."
        )
    return SAMPLINGS[name](loader)


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
    return lambda noise: [*spent, *sampling.planned(noise, planned, epoch=first)]


def last_epoch(history: History) -> int:
    """Return the highest epoch in ``history``, 0 if none: two epochs of one number would be accounted as one."""
    return max((epoch_of(release) or 0 for release, _ in history), default=0)
