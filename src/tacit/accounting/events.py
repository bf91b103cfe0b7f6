"""What a training run released, as data: the only thing an accountant needs to know.

A *release* is one noisy sum that left the private computation.  A *history* is a run-length
encoded sequence of releases, ``((release, count), ...)``, in the order they happened.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias

from tacit.errors import ConfigurationError

Adjacency: TypeAlias = Literal["add-or-remove-one", "zero-out-one"]


@dataclass(frozen=True, slots=True)
class PoissonRelease:
    """Gaussian noise added once to a clipped sum over Poisson-sampled batches.

    With ``draws == 1`` this is one step of DP-SGD (Abadi et al. 2016, arXiv:1607.00133).  With
    ``draws > 1`` several independent Poisson draws were summed before the noise was added, so a
    record contributes up to Binomial(draws, sample_rate) times the clipping bound.

    Args:
        noise_multiplier: standard deviation of the noise divided by the sensitivity of one draw
            (the clipping bound); 0 means no noise, hence an infinite epsilon.
        sample_rate: probability with which each record enters each draw, in (0, 1].
        draws: number of independent draws in the sum, at least 1.

    Raises:
        ConfigurationError: if an argument is outside these ranges.
    """

    noise_multiplier: float
    sample_rate: float
    draws: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", _checked_noise(self.noise_multiplier))
        rate = checked_number("sample_rate", self.sample_rate)
        if not 0.0 < rate <= 1.0:
            raise ConfigurationError(
                f"sample_rate is {self.sample_rate!r}, but it is the probability of drawing a record: "
                "pass a number in (0, 1], usually expected batch size / dataset size."
            )
        object.__setattr__(self, "sample_rate", rate)
        object.__setattr__(self, "draws", checked_count("draws", self.draws))

    @property
    def adjacency(self) -> Adjacency:
        """The neighbouring relation for which the release is accounted."""
        return "add-or-remove-one"


@dataclass(frozen=True, slots=True)
class EpochRelease:
    """One of the noisy batch sums of an epoch in which each record is in at most one batch.

    No amplification by sampling is claimed.  The batches of an epoch are disjoint, so replacing
    one record's data by a null record changes only one of its sums: by (adaptive) parallel
    composition (McSherry 2009, doi:10.1145/1559845.1559850) the whole epoch costs one Gaussian
    mechanism at the smallest noise multiplier used in it.  Adding or removing a record could
    move others between batches, hence the adjacency "zero-out-one".

    Args:
        noise_multiplier: standard deviation of the noise divided by the clipping bound; 0 means
            no noise, hence an infinite epsilon.
        epoch: which pass over the data the batch belongs to, at least 0.  All releases of one
            epoch number count as one disjoint pass, whenever they happened.

    Raises:
        ConfigurationError: if an argument is outside these ranges.
    """

    noise_multiplier: float
    epoch: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", _checked_noise(self.noise_multiplier))
        object.__setattr__(self, "epoch", checked_count("epoch", self.epoch, minimum=0))

    @property
    def adjacency(self) -> Adjacency:
        """The neighbouring relation for which the release is accounted."""
        return "zero-out-one"


Release: TypeAlias = PoissonRelease | EpochRelease
History: TypeAlias = Iterable[tuple[Release, int]]


def adjacency_of(history: History) -> Adjacency:
    """The neighbouring relation under which the epsilon of the whole history holds.

    Poisson releases alone are private under "add-or-remove-one".  Their bound also holds under
    "zero-out-one": a null record contributes zero to every draw, so the outputs with the record
    and with its null replacement have exactly the distributions of the add/remove pair (Kairouz
    et al. 2021, arXiv:2103.00039, section 2).  Epoch releases are private under "zero-out-one"
    only, so one of them makes that the relation of the whole history.
    """
    if any(release.adjacency == "zero-out-one" for release, _ in history):
        return "zero-out-one"
    return "add-or-remove-one"


def release_to_dict(release: Release) -> dict[str, Any]:
    """The release as a JSON-able dict with its kind; see `release_from_dict`."""
    if isinstance(release, PoissonRelease):
        return {
            "kind": "poisson",
            "noise_multiplier": release.noise_multiplier,
            "sample_rate": release.sample_rate,
            "draws": release.draws,
        }
    return {"kind": "epoch", "noise_multiplier": release.noise_multiplier, "epoch": release.epoch}


_FIELDS = {
    "poisson": {"noise_multiplier", "sample_rate", "draws"},
    "epoch": {"noise_multiplier", "epoch"},
}


def release_from_dict(data: Mapping[str, Any]) -> Release:
    """The release that `release_to_dict` described.

    Raises:
        ConfigurationError: if the kind is unknown, a field is missing, unknown or out of range.
    """
    fields = {name: value for name, value in data.items() if name != "kind"}
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in _FIELDS or set(fields) != _FIELDS[kind]:
        raise ConfigurationError(
            f"{dict(data)!r} does not describe a release, so its privacy cost is unknown: "
            f"expected a kind and exactly its fields, one of {_FIELDS}."
        )
    return PoissonRelease(**fields) if kind == "poisson" else EpochRelease(**fields)


def checked_number(name: str, value: object) -> float:
    """`value` as a finite float, or ConfigurationError naming it."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigurationError(f"{name} is {value!r}, which no privacy formula can use: pass a finite number.")
    return float(value)


def checked_count(name: str, value: object, minimum: int = 1) -> int:
    """`value` as an int of at least `minimum`, or ConfigurationError naming it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigurationError(f"{name} is {value!r}, but it counts something: pass an int of at least {minimum}.")
    return value


def checked_delta(name: str, value: object) -> float:
    """`value` as a float strictly between 0 and 1, or ConfigurationError naming it."""
    delta = checked_number(name, value)
    if not 0.0 < delta < 1.0:
        raise ConfigurationError(
            f"{name} is {value!r}, but it is a probability of failure: pass a number strictly between "
            "0 and 1, well below 1 / dataset size."
        )
    return delta


def _checked_noise(value: object) -> float:
    noise = checked_number("noise_multiplier", value)
    if noise < 0.0:
        raise ConfigurationError(
            f"noise_multiplier is {value!r}, but it is a standard deviation divided by the "
            "sensitivity: pass a number of at least 0 (0 means no noise and no privacy)."
        )
    return noise
