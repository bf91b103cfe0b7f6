"""What every way of drawing batches says about itself."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch

from tacit.accounting.events import Release
from tacit.sampling.draws import Draw


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

    @abstractmethod
    def event(self, noise_multiplier: float, draws: Sequence[Draw]) -> Release:
        """What the accountant must be told of one release that consumed ``draws``.

        Raises:
            SamplingError: no proof covers these draws in one release.
        """
