"""The kinds of releases: one for each way of drawing batches for which a privacy proof is known.

A *release* is one noisy sum that left the private computation: Gaussian noise added once to clipped sums over one or
several drawn batches. Each kind names, in ``adjacencies``, the neighbouring relations for which it has a proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from tacit.accounting.checks import checked_count, checked_noise, checked_rate
from tacit.errors import ConfigurationError

Adjacency: TypeAlias = Literal["add-or-remove-one", "zero-out-one", "replace-one"]


@dataclass(frozen=True, slots=True)
class Release:
    """What all kinds share.

    Args:
        noise_multiplier: standard deviation of the noise divided by the clipping bound, at least 0; 0 means no noise,
            hence an infinite epsilon.

    Raises:
        ConfigurationError: if an argument is outside its range.
    """

    kind: ClassVar[str]
    adjacencies: ClassVar[tuple[Adjacency, ...]]

    noise_multiplier: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", checked_noise(self.noise_multiplier))


@dataclass(frozen=True, slots=True)
class PoissonRelease(Release):
    """Clipped sums over Poisson-sampled batches.

    With ``draws == 1`` this is one step of DP-SGD (Abadi et al. 2016, arXiv:1607.00133). With ``draws > 1`` several
    independent Poisson draws were summed before the noise was added, so a record contributes up to
    Binomial(draws, sample_rate) times the clipping bound (Choquette-Choo et al. 2023, arXiv:2310.15526).

    A blank record contributes zero to every draw, so that "zero-out-one" has the distributions of "add-or-remove-one"
    (Kairouz et al. 2021, arXiv:2103.00039, section 2). For "replace-one" see `docs/accounting.md`.

    Args:
        noise_multiplier: see `Release`.
        sample_rate: probability with which each record enters each draw, in (0, 1].
        draws: number of independent draws in the sum, at least 1.
    """

    kind: ClassVar[str] = "poisson"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ("add-or-remove-one", "zero-out-one", "replace-one")

    sample_rate: float
    draws: int = 1

    def __post_init__(self) -> None:
        Release.__post_init__(self)
        object.__setattr__(self, "sample_rate", checked_rate(self.sample_rate))
        checked_count("draws", self.draws)


@dataclass(frozen=True, slots=True)
class EpochRelease(Release):
    """One of the noisy batch sums of an epoch in which each record is in at most one batch.

    No amplification by sampling is claimed. The batches of an epoch are disjoint, so changing one record's data changes
    only one of its sums: by (adaptive) parallel composition (McSherry 2009, doi:10.1145/1559845.1559850) the whole
    epoch costs one Gaussian mechanism at the smallest noise multiplier used in it. Adding or removing a record could
    move others between batches, hence no "add-or-remove-one".

    Args:
        noise_multiplier: see `Release`.
        epoch: which pass over the data the batch belongs to, at least 0. All releases of one epoch number count as one
            disjoint pass, whenever they happened.
    """

    kind: ClassVar[str] = "epoch"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ("zero-out-one", "replace-one")

    epoch: int

    def __post_init__(self) -> None:
        Release.__post_init__(self)
        checked_count("epoch", self.epoch, minimum=0)


@dataclass(frozen=True, slots=True)
class TruncatedRelease(Release):
    """Clipped sums over Poisson batches of which, if too large, a random part of a fixed size is kept.

    Proof: Ganesh 2025, arXiv:2508.15089. A record is drawn as in Poisson sampling unless the batch is full without it;
    then it takes the place of another one, and the sum moves by up to twice the bound.

    Args:
        noise_multiplier: see `Release`.
        sample_rate: probability with which each record enters the Poisson draw, in (0, 1].
        records: how many records the data set has; public.
        largest: the most records that are kept, at least 1.
        draws: number of independent draws in the sum, at least 1.
    """

    kind: ClassVar[str] = "truncated"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ("add-or-remove-one",)

    sample_rate: float
    records: int
    largest: int
    draws: int = 1

    def __post_init__(self) -> None:
        Release.__post_init__(self)
        object.__setattr__(self, "sample_rate", checked_rate(self.sample_rate))
        for name in ("records", "largest", "draws"):
            checked_count(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class BallsInBinsRelease(Release):
    """One of the noisy batch sums of an epoch in which each record is in one batch, chosen at random for it alone.

    Proof: Chua et al. 2025, arXiv:2412.16802 (balls-and-bins), and Choquette-Choo et al. 2024, arXiv:2410.06266, for
    adaptive releases. An epoch is one mechanism: without the record N(0, σ²) in each of its sums; with it, one of
    ``bins`` sums, each as likely, is moved by the clipping bound.

    Args:
        noise_multiplier: see `Release`.
        bins: number of batches of an epoch, at least 1.
        epoch: which pass over the data, at least 0.
        draws: number of the epoch's batches in this sum, in [1, bins].
    """

    kind: ClassVar[str] = "balls-in-bins"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ("add-or-remove-one", "zero-out-one")

    bins: int
    epoch: int
    draws: int = 1

    def __post_init__(self) -> None:
        Release.__post_init__(self)
        checked_count("bins", self.bins)
        checked_count("epoch", self.epoch, minimum=0)
        if checked_count("draws", self.draws) > self.bins:
            raise ConfigurationError(f"draws is {self.draws}, but an epoch has {self.bins} batches: pass at most that.")


@dataclass(frozen=True, slots=True)
class FixedSizeRelease(Release):
    """Clipped sums over batches of a fixed size, drawn without replacement.

    Proof, for replacing a record: Zhu, Dong, Wang 2022, arXiv:2106.08567, theorem 11; that a pair with this privacy
    profile is composed, and not the worse of two: Lebeda et al. 2024, arXiv:2405.20769. The replaced record's sum
    moves by up to twice the clipping bound.

    Args:
        noise_multiplier: see `Release`.
        records: how many records the data set has; public.
        size: how many records each batch has, in [1, records].
        draws: number of independent draws in the sum, at least 1.
    """

    kind: ClassVar[str] = "fixed-size"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ("replace-one",)

    records: int
    size: int
    draws: int = 1

    def __post_init__(self) -> None:
        Release.__post_init__(self)
        for name in ("records", "size", "draws"):
            checked_count(name, getattr(self, name))
        if self.size > self.records:
            raise ConfigurationError(
                f"size is {self.size}, but the data set has {self.records} records: pass at most that."
            )


@dataclass(frozen=True, slots=True)
class CyclicRelease(Release):
    """Clipped sums over Poisson-sampled batches of one of several disjoint groups of records, in turn.

    Proof: Choquette-Choo et al. 2023, arXiv:2306.08153 (cyclic Poisson sampling). In one pass a record is in one group,
    fixed by its place in the data set, and the releases of other groups do not depend on it: the pass costs what the
    costliest group does. Adding or removing a record would move others between groups, hence no "add-or-remove-one".

    Args:
        noise_multiplier: see `Release`.
        sample_rate: probability with which each record of the group enters the draw, in (0, 1].
        group: which group, at least 0.
        epoch: which pass over the data, at least 0. Nothing is assumed of which groups of two passes are alike.
        draws: number of independent draws of this group in the sum, at least 1.
    """

    kind: ClassVar[str] = "cyclic"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ("zero-out-one", "replace-one")

    sample_rate: float
    group: int
    epoch: int
    draws: int = 1

    def __post_init__(self) -> None:
        Release.__post_init__(self)
        object.__setattr__(self, "sample_rate", checked_rate(self.sample_rate))
        checked_count("group", self.group, minimum=0)
        checked_count("epoch", self.epoch, minimum=0)
        checked_count("draws", self.draws)
