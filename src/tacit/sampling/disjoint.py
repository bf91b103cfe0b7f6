"""Batches of one epoch that share no record: each record joins one of them, at random, by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from tacit.accounting.checks import checked_count
from tacit.accounting.releases import BallsInBinsRelease, Release
from tacit.sampling.base import Sampling, check_one_epoch, epoch_by_epoch
from tacit.sampling.draws import Draw
from tacit.sampling.parts import whole
from tacit.sampling.poisson import random_bits
from tacit.sampling.source import check_source


@dataclass(frozen=True)
class BallsInBinsSampling(Sampling):
    """In each epoch every record is thrown into one of ``steps_per_epoch`` batches, each as likely.

    Like shuffled batches each record is used once per epoch, and as with Poisson sampling sizes vary; epsilon is a
    little below Poisson's (Chua et al. 2025, arXiv:2412.16802).

    Attributes:
        records: number of records in the dataset, at least 1.
        steps_per_epoch: batches per epoch, at least 1.

    Raises:
        ConfigurationError: a value outside these ranges.
    """

    records: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        checked_count("records", self.records)
        checked_count("steps_per_epoch", self.steps_per_epoch)

    @classmethod
    def from_loader(cls, loader: DataLoader[Any]) -> BallsInBinsSampling:
        """As many batches as an ordinary loader has.

        Raises:
            SamplingError: see :func:`tacit.sampling.check_source`.
        """
        loader = whole(loader)
        return cls(check_source(loader, poisson=True), len(loader))

    @property
    def expected_batch_size(self) -> float:
        """records / steps_per_epoch."""
        return self.records / self.steps_per_epoch

    @property
    def amplified(self) -> bool:
        """True, unless an epoch is one batch."""
        return self.steps_per_epoch > 1

    @property
    def description(self) -> str:
        """One sentence for a privacy statement."""
        return (
            f"Balls in bins: in each epoch each of {self.records} records joins one of {self.steps_per_epoch} batches, "
            "chosen uniformly and independently of the others; privacy amplification by this choice is claimed."
        )

    def batches(self, generator: torch.Generator) -> Iterator[list[int]]:
        """``steps_per_epoch`` disjoint batches of ascending indices that together are all records."""
        # 63 bits: the modulus favours no batch by more than 2⁻⁶³ · steps_per_epoch of its chance.
        bins = random_bits(self.records, generator) % self.steps_per_epoch
        order = bins.argsort(stable=True)
        for part in order.split(bins.bincount(minlength=self.steps_per_epoch).tolist()):
            batch: list[int] = part.tolist()
            yield batch

    def event(self, noise_multiplier: float, draws: Sequence[Draw]) -> Release:
        """The release of one or several batches of one epoch.

        Raises:
            SamplingError: ``draws`` is empty or spans two epochs.
        """
        return BallsInBinsRelease(noise_multiplier, self.steps_per_epoch, check_one_epoch(draws), len(draws))

    def planned(
        self, noise_multiplier: float, releases: int, *, epoch: int = 1, place: int = 0, draws: int = 1
    ) -> list[tuple[Release, int]]:
        """See :meth:`Sampling.planned`: one run of releases for each pass over the data."""
        return epoch_by_epoch(self, noise_multiplier, releases, epoch=epoch, place=place, draws=draws)
