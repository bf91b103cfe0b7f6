"""What every way of drawing batches says about itself."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch

from tacit.accounting.releases import Release
from tacit.errors import SamplingError
from tacit.sampling.draws import Draw


def epoch_by_epoch(
    sampling: "Sampling", noise_multiplier: float, releases: int, *, epoch: int, place: int, draws: int
) -> list[tuple[Release, int]]:
    """`Sampling.planned` where releases of one pass are alike and those of another pass are not."""
    found = []
    while releases > 0:
        count = min(releases, max(1, (sampling.steps_per_epoch - place) // draws))
        found.append((sampling.event(noise_multiplier, [Draw(0, epoch, 0, place)] * draws), count))
        releases, epoch, place = releases - count, epoch + 1, 0
    return found


def check_one_epoch(draws: Sequence[Draw]) -> int:
    """The epoch of all of some draws.

    Raises:
        SamplingError: they are none, or span two epochs.
    """
    epochs = sorted({draw.epoch for draw in draws})
    if len(epochs) != 1:
        raise SamplingError(
            f"One release was made of batches from the epochs {epochs}; batches, or groups, are disjoint only "
            "within one epoch, so that a record could count twice in this release and its noise would "
            "be too small. Step, or call optimizer.zero_grad(), before the next epoch begins."
        )
    return epochs[0]


def check_some(draws: Sequence[Draw]) -> int:
    """The number of draws.

    Raises:
        SamplingError: there are none.
    """
    if not draws:
        raise SamplingError(
            "A release names no draw, so nothing says what it was computed from and it cannot be "
            "accounted. Pass what DrawLog.take() returned."
        )
    return len(draws)


class Sampling(ABC):
    """How the indices of each logical batch are drawn, and what the accountant may assume of it.

    Concrete samplings are frozen dataclasses. All of their fields are public constants: they are
    fixed before training and take part in no release.

    Attributes:
        records: number of records in the dataset.
        steps_per_epoch: number of logical batches in one epoch.
    """

    records: int
    steps_per_epoch: int

    @property
    def units(self) -> int:
        """Number of units of privacy: the records, unless several of them are one user's."""
        return self.records

    @property
    def unit(self) -> str:
        """What one unit of privacy is, in a word."""
        return "record"

    @property
    def padded_size(self) -> int | None:
        """How many rows each batch is padded to; None if batches are as long as they were drawn."""
        return None

    def owners(self, indices: Sequence[int]) -> list[int] | None:  # noqa: ARG002
        """The unit of privacy of each record; None if each record is one."""
        return None

    @property
    @abstractmethod
    def expected_batch_size(self) -> float:
        """Records per logical batch in expectation; a public constant, never rounded."""

    @property
    @abstractmethod
    def amplified(self) -> bool:
        """Whether the accounting relies on the draw being random and secret."""

    @property
    @abstractmethod
    def description(self) -> str:
        """One sentence for a privacy statement: scheme, amplification, adjacency."""

    @abstractmethod
    def batches(self, generator: torch.Generator) -> Iterator[list[int]]:
        """The index lists of one epoch, ``steps_per_epoch`` of them, drawn lazily from ``generator``."""

    def planned(
        self, noise_multiplier: float, releases: int, *, epoch: int = 1, place: int = 0, draws: int = 1
    ) -> list[tuple[Release, int]]:
        """What coming releases will be, as a history; their order is left out.

        Args:
            noise_multiplier: of all of them.
            releases: how many.
            epoch: the pass over the data in which the first is.
            place: its place in that pass, counted from 0.
            draws: how many draws are in each.
        """
        return [(self.event(noise_multiplier, [Draw(0, epoch, 0, place)] * draws), releases)]

    @abstractmethod
    def event(self, noise_multiplier: float, draws: Sequence[Draw]) -> Release:
        """What the accountant must be told of one release that consumed ``draws``.

        The kind of the release names the proof, and in ``adjacencies`` the neighbouring relations that it is for.

        Raises:
            SamplingError: no proof covers these draws in one release.
        """
