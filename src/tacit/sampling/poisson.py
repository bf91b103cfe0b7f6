"""Poisson sampling: every record joins every batch by an independent coin."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from tacit.accounting.checks import checked_count, checked_rate
from tacit.accounting.releases import PoissonRelease, Release
from tacit.sampling.base import Sampling, check_some
from tacit.sampling.draws import Draw
from tacit.sampling.parts import whole
from tacit.sampling.source import check_source

_BITS = 63
_MANY, _RARE = 2**20, 2.0**-6
"""From so many records on, and at so small rates, batches are drawn by the gaps between their records."""


def inclusion_threshold(sample_rate: float) -> int:
    """floor(sample_rate * 2**63), exactly: a record is drawn when its 63 random bits are below it.

    P(include) = threshold / 2**63 is at most ``sample_rate`` and less than 2**-63 below it. The
    amplified epsilon grows with the rate, so rounding down keeps the reported epsilon a bound.
    (Comparing float32 uniforms instead, of 24 bits, is off by 20 % at a rate of 1e-7.)
    """
    return math.floor(math.ldexp(sample_rate, _BITS))


def skipping(records: int, sample_rate: float, generator: torch.Generator) -> list[int]:
    """One Poisson batch in time and memory of its expected size: by the gaps between its records.

    A gap is geometric: ``⌊E / λ⌋`` with E exponential and ``λ = −ln(1 − rate)``. E is taken from 63 random bits on the
    side where small numbers are exact, so that the probability of any gap is off by less than 2⁻⁶² and a few float64
    roundings. The rate is set lower by as much (1e-9 of it and 2⁻⁶²): the reported epsilon stays a bound.
    """
    rate = sample_rate * (1 - 1e-9) - 2.0**-62
    scale = -math.log1p(-rate)
    expected = records * rate
    found: list[torch.Tensor] = []
    last = -1
    while last < records:
        count = int(expected + 6 * math.sqrt(expected)) + 16
        bits = random_bits(count, generator)
        gaps = torch.log1p(-(bits.double() + 0.5).mul_(2.0**-63)).div_(-scale).floor_()
        places = (gaps.clamp_(max=records).to(torch.int64) + 1).cumsum(0) + last
        found.append(places[places < records])
        last = int(places[-1])
    batch: list[int] = torch.cat(found).tolist()
    return batch


def poisson_batch(records: int, sample_rate: float, generator: torch.Generator) -> list[int]:
    """One Poisson batch, in ascending order."""
    if records >= _MANY and sample_rate <= _RARE:
        return skipping(records, sample_rate, generator)
    threshold = inclusion_threshold(sample_rate)
    if threshold == 1 << _BITS:  # does not fit an int64 comparison
        return list(range(records))
    batch: list[int] = (random_bits(records, generator) < threshold).nonzero().flatten().tolist()
    return batch


def random_bits(count: int, generator: torch.Generator) -> torch.Tensor:
    """``(count,)``: whole numbers, uniform in [0, 2⁶³)."""
    return torch.empty(count, dtype=torch.int64).random_(generator=generator)


@dataclass(frozen=True)
class PoissonSampling(Sampling):
    """Each of ``records`` records joins each batch independently with probability ``sample_rate``.

    Amplification by this scheme: Abadi et al. 2016 (arXiv:1607.00133), Mironov et al. 2019
    (arXiv:1908.10530). Batch sizes vary, and a batch may be empty; both must be trained on as drawn.

    Attributes:
        records: number of records in the dataset, at least 1.
        sample_rate: inclusion probability, in (0, 1].
        steps_per_epoch: batches per epoch, at least 1.

    Raises:
        ConfigurationError: a value outside these ranges.
    """

    records: int
    sample_rate: float
    steps_per_epoch: int

    def __post_init__(self) -> None:
        checked_count("records", self.records)
        checked_count("steps_per_epoch", self.steps_per_epoch)
        checked_rate(self.sample_rate)

    @classmethod
    def from_loader(cls, loader: DataLoader[Any]) -> "PoissonSampling":
        """The Poisson sampling that replaces an ordinary loader.

        sample_rate = 1 / len(loader) and steps_per_epoch = len(loader), so that a record is met once
        per epoch in expectation; the expected batch is records / len(loader). With several processes
        len(loader) is taken at the batch size of all of them together; see :func:`tacit.sampling.whole`.

        Raises:
            SamplingError: see :func:`tacit.sampling.check_source`.
        """
        loader = whole(loader)
        records = check_source(loader, poisson=True)
        steps = len(loader)
        return cls(records=records, sample_rate=1.0 / steps, steps_per_epoch=steps)

    @property
    def expected_batch_size(self) -> float:
        """records * sample_rate."""
        if self.sample_rate == 1.0 / self.steps_per_epoch:
            # Spares the double rounding of records * (1 / steps).
            return self.records / self.steps_per_epoch
        return self.records * self.sample_rate

    @property
    def amplified(self) -> bool:
        """True, unless every record joins every batch."""
        return self.sample_rate < 1.0

    @property
    def description(self) -> str:
        """One sentence for a privacy statement."""
        claim = "is claimed" if self.amplified else "is not claimed, as the rate is 1"
        return (
            f"Poisson sampling: each of {self.records} records joins each batch independently with "
            f"probability {self.sample_rate:.6g}; privacy amplification by sampling {claim}."
        )

    def batches(self, generator: torch.Generator) -> Iterator[list[int]]:
        """``steps_per_epoch`` independent batches of ascending indices; order carries nothing."""
        for _ in range(self.steps_per_epoch):
            yield poisson_batch(self.records, self.sample_rate, generator)

    def event(self, noise_multiplier: float, draws: Sequence[Draw]) -> Release:
        """A Poisson release of as many draws as contributed.

        Raises:
            SamplingError: ``draws`` is empty.
        """
        return PoissonRelease(noise_multiplier, self.sample_rate, check_some(draws))
