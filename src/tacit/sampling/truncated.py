"""Poisson sampling with a largest batch, padded to it: batches of one size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from tacit.accounting.checks import checked_count, checked_rate
from tacit.accounting.releases import Release, TruncatedRelease
from tacit.sampling.base import Sampling, check_some
from tacit.sampling.draws import Draw
from tacit.sampling.fixed import random_part
from tacit.sampling.poisson import PoissonSampling, poisson_batch


@dataclass(frozen=True)
class TruncatedPoissonSampling(Sampling):
    """Poisson batches of which, if they are larger than ``largest``, a random part of that size is kept.

    The truncation is accounted for (Ganesh 2025, arXiv:2508.15089). With ``padding`` each batch has exactly ``largest``
    rows: blank ones stand behind the drawn ones and contribute nothing, so that shapes never change.

    Attributes:
        records: number of records in the dataset, at least 1.
        sample_rate: inclusion probability before truncation, in (0, 1].
        steps_per_epoch: batches per epoch, at least 1.
        largest: most records in a batch, at least 1.
        padding: whether batches are padded to ``largest`` rows.

    Raises:
        ConfigurationError: a value outside these ranges.
    """

    records: int
    sample_rate: float
    steps_per_epoch: int
    largest: int
    padding: bool = True

    def __post_init__(self) -> None:
        for name in ("records", "steps_per_epoch", "largest"):
            checked_count(name, getattr(self, name))
        checked_rate(self.sample_rate)

    @classmethod
    def from_loader(
        cls, loader: DataLoader[Any], *, largest: int | None = None, padding: bool = True
    ) -> TruncatedPoissonSampling:
        """The sampling that replaces an ordinary loader; see :class:`PoissonSampling`.

        Args:
            loader: the loader.
            largest: most records in a batch; by default the mean and six standard deviations, which truncates one
                batch in 10⁹ and costs next to nothing.
            padding: whether batches are padded to ``largest`` rows.

        Raises:
            SamplingError: see :func:`tacit.sampling.check_source`.
        """
        plain = PoissonSampling.from_loader(loader)
        if largest is None:
            mean = plain.expected_batch_size
            deviation = math.sqrt(mean * (1 - plain.sample_rate))
            largest = min(plain.records, math.ceil(mean + 6 * deviation))
        return cls(plain.records, plain.sample_rate, plain.steps_per_epoch, largest, padding)

    @property
    def expected_batch_size(self) -> float:
        """records * sample_rate: before truncation, a public constant."""
        return self.records * self.sample_rate

    @property
    def padded_size(self) -> int | None:
        """``largest``, with padding."""
        return self.largest if self.padding else None

    @property
    def amplified(self) -> bool:
        """True, unless every record joins every batch."""
        return self.sample_rate < 1.0

    @property
    def description(self) -> str:
        """One sentence for a privacy statement."""
        padded = f", padded with blank rows to {self.largest}" if self.padding else ""
        return (
            f"Truncated Poisson sampling: each of {self.records} records joins each batch independently with "
            f"probability {self.sample_rate:.6g}; of more than {self.largest} a random part of that size is "
            f"kept{padded}; privacy amplification by sampling is claimed, and truncation accounted for."
        )

    def batches(self, generator: torch.Generator) -> Iterator[list[int]]:
        """``steps_per_epoch`` independent batches of ascending indices, none larger than ``largest``."""
        for _ in range(self.steps_per_epoch):
            batch = poisson_batch(self.records, self.sample_rate, generator)
            yield batch if len(batch) <= self.largest else random_part(batch, self.largest, generator)

    def event(self, noise_multiplier: float, draws: Sequence[Draw]) -> Release:
        """A release of as many draws as contributed.

        Raises:
            SamplingError: ``draws`` is empty.
        """
        return TruncatedRelease(noise_multiplier, self.sample_rate, self.records, self.largest, check_some(draws))
