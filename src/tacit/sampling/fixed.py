"""Batches of known sizes: all records, or a fixed number of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from tacit.accounting.checks import checked_count
from tacit.accounting.releases import FixedSizeRelease, PoissonRelease, Release
from tacit.errors import ConfigurationError
from tacit.sampling.base import Sampling, check_some
from tacit.sampling.draws import Draw
from tacit.sampling.parts import whole
from tacit.sampling.poisson import random_bits
from tacit.sampling.source import check_source


@dataclass(frozen=True)
class FullBatchSampling(Sampling):
    """Every batch is the whole dataset: the plain Gaussian mechanism, without amplification.

    Attributes:
        records: number of records in the dataset, at least 1.

    Raises:
        ConfigurationError: ``records`` is outside this range.
    """

    records: int
    steps_per_epoch: int = 1

    def __post_init__(self) -> None:
        checked_count("records", self.records)
        checked_count("steps_per_epoch", self.steps_per_epoch)

    @classmethod
    def from_loader(cls, loader: DataLoader[Any]) -> FullBatchSampling:
        """One batch of all records that ``loader`` has.

        Raises:
            SamplingError: see :func:`tacit.sampling.check_source`.
        """
        return cls(check_source(whole(loader), poisson=True))

    @property
    def expected_batch_size(self) -> float:
        """``records``."""
        return float(self.records)

    @property
    def amplified(self) -> bool:
        """False: nothing is drawn."""
        return False

    @property
    def description(self) -> str:
        """One sentence for a privacy statement."""
        return f"Full batches: each has all {self.records} records; no privacy amplification by sampling is claimed."

    def batches(self, generator: torch.Generator) -> Iterator[list[int]]:  # noqa: ARG002
        """All indices, ``steps_per_epoch`` times."""
        for _ in range(self.steps_per_epoch):
            yield list(range(self.records))

    def event(self, noise_multiplier: float, draws: Sequence[Draw]) -> Release:
        """A plain Gaussian of as many draws as contributed.

        Raises:
            SamplingError: ``draws`` is empty.
        """
        return PoissonRelease(noise_multiplier, 1.0, check_some(draws))


@dataclass(frozen=True)
class FixedSizeSampling(Sampling):
    """Each batch is a uniformly random set of ``batch_size`` records, drawn anew without replacement.

    Proved where a record is replaced by another one (Zhu, Dong, Wang 2022, arXiv:2106.08567); there it moves the sum by
    up to twice the clipping bound, so that epsilon is that of about half the noise.

    Attributes:
        records: number of records in the dataset, at least 1.
        batch_size: records per batch, in [1, records].
        steps_per_epoch: batches per epoch, at least 1.

    Raises:
        ConfigurationError: a value outside these ranges.
    """

    records: int
    batch_size: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        for name in ("records", "batch_size", "steps_per_epoch"):
            checked_count(name, getattr(self, name))
        if self.batch_size > self.records:
            raise ConfigurationError(f"batch_size is {self.batch_size}, but there are {self.records} records.")

    @classmethod
    def from_loader(cls, loader: DataLoader[Any]) -> FixedSizeSampling:
        """Batches of the loader's size, as many as it has.

        Raises:
            SamplingError: see :func:`tacit.sampling.check_source`.
        """
        loader = whole(loader)
        records, size = check_source(loader, poisson=False), loader.batch_size
        assert size is not None  # check_source refuses it
        return cls(records, min(size, records), len(loader))

    @property
    def expected_batch_size(self) -> float:
        """``batch_size``."""
        return float(self.batch_size)

    @property
    def amplified(self) -> bool:
        """True, unless a batch is the whole dataset."""
        return self.batch_size < self.records

    @property
    def description(self) -> str:
        """One sentence for a privacy statement."""
        return (
            f"Fixed size: each batch is a uniformly random set of {self.batch_size} of {self.records} records, drawn "
            "without replacement; privacy amplification by sampling is claimed."
        )

    def batches(self, generator: torch.Generator) -> Iterator[list[int]]:
        """``steps_per_epoch`` independent batches of ascending indices."""
        for _ in range(self.steps_per_epoch):
            yield random_part(range(self.records), self.batch_size, generator)

    def event(self, noise_multiplier: float, draws: Sequence[Draw]) -> Release:
        """A release of as many draws as contributed.

        Raises:
            SamplingError: ``draws`` is empty.
        """
        return FixedSizeRelease(noise_multiplier, self.records, self.batch_size, check_some(draws))


def random_part(indices: Sequence[int], size: int, generator: torch.Generator) -> list[int]:
    """A uniformly random set of ``size`` of the indices, in their order."""
    # The least of random keys: torch.randperm reduces 32 bits, which favours some records by n / 2³².
    kept = random_bits(len(indices), generator).topk(size, largest=False).indices.sort().values
    return [indices[place] for place in kept.tolist()]
