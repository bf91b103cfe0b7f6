"""The loader's own batches: each record at most once per epoch, and no amplification."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from tacit.accounting.checks import checked_count
from tacit.accounting.releases import EpochRelease, Release
from tacit.errors import ConfigurationError
from tacit.sampling.base import Sampling, check_one_epoch, epoch_by_epoch
from tacit.sampling.draws import Draw
from tacit.sampling.parts import whole
from tacit.sampling.source import check_source


@dataclass(frozen=True)
class EpochSampling(Sampling):
    """Batches of fixed size in sequence or shuffled, disjoint within an epoch.

    Within one epoch the releases compose in parallel, as each record is in one batch at most. That
    holds under zero-out adjacency, where a record's contribution is blanked and the other records
    keep their batches (Kairouz et al. 2021, arXiv:2103.00039; Chua et al. 2024, arXiv:2403.17673);
    removing a record would move others to other batches.

    Attributes:
        records: number of records in the dataset, at least 1.
        batch_size: records per batch; the last batch of an epoch may have fewer.
        steps_per_epoch: records / batch_size, rounded up, or down to drop a short last batch.
        shuffle: draw a new order each epoch instead of the dataset's own.

    Raises:
        ConfigurationError: a value outside these ranges.
    """

    records: int
    batch_size: int
    steps_per_epoch: int
    shuffle: bool = False

    def __post_init__(self) -> None:
        checked_count("records", self.records)
        checked_count("batch_size", self.batch_size)
        checked_count("steps_per_epoch", self.steps_per_epoch)
        full, rest = divmod(self.records, self.batch_size)
        if self.steps_per_epoch not in (full, full + (rest > 0)):
            raise ConfigurationError(
                f"steps_per_epoch is {self.steps_per_epoch}, but {self.records} records in batches of "
                f"{self.batch_size} make {full} full batches and {rest} records over; a record may be "
                f"used once per epoch. Pass {full + (rest > 0)}."
            )

    @classmethod
    def from_loader(cls, loader: DataLoader[Any]) -> "EpochSampling":
        """The batches that ``loader`` draws anyway.

        Raises:
            SamplingError: see :func:`tacit.sampling.check_source`.
        """
        loader = whole(loader)
        records = check_source(loader, poisson=False)
        size = loader.batch_size
        assert size is not None  # check_source refuses it
        shuffle = isinstance(loader.sampler, RandomSampler)
        return cls(records=records, batch_size=size, steps_per_epoch=len(loader), shuffle=shuffle)

    @property
    def expected_batch_size(self) -> float:
        """``batch_size``, also for a short last batch."""
        return float(self.batch_size)

    @property
    def amplified(self) -> bool:
        """False: the order may be known to anyone."""
        return False

    @property
    def description(self) -> str:
        """One sentence for a privacy statement."""
        order = "shuffled" if self.shuffle else "sequential"
        return (
            f"The loader's own {order} batches of {self.batch_size}: each of {self.records} records is used "
            "at most once per epoch; no privacy amplification by sampling is claimed."
        )

    def batches(self, generator: torch.Generator) -> Iterator[list[int]]:
        """The batches PyTorch's own samplers make; sequential ones leave ``generator`` alone."""
        order: RandomSampler | SequentialSampler
        if self.shuffle:
            order = RandomSampler(range(self.records), generator=generator)
        else:
            order = SequentialSampler(range(self.records))
        drop_last = self.steps_per_epoch * self.batch_size < self.records
        yield from BatchSampler(order, self.batch_size, drop_last)

    def event(self, noise_multiplier: float, draws: Sequence[Draw]) -> Release:
        """The release of one or several disjoint batches of one epoch.

        Raises:
            SamplingError: ``draws`` is empty or spans two epochs.
        """
        return EpochRelease(noise_multiplier=noise_multiplier, epoch=check_one_epoch(draws))

    def planned(
        self, noise_multiplier: float, releases: int, *, epoch: int = 1, place: int = 0, draws: int = 1
    ) -> list[tuple[Release, int]]:
        """See :meth:`Sampling.planned`: one run of releases for each pass over the data."""
        return epoch_by_epoch(self, noise_multiplier, releases, epoch=epoch, place=place, draws=draws)
