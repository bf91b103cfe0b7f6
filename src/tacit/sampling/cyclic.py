"""Poisson sampling from groups of records, one group after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from tacit.accounting.checks import checked_count, checked_rate
from tacit.accounting.releases import CyclicRelease, Release
from tacit.errors import ConfigurationError, SamplingError
from tacit.sampling.base import Sampling, check_one_epoch
from tacit.sampling.draws import Draw
from tacit.sampling.parts import whole
from tacit.sampling.poisson import poisson_batch
from tacit.sampling.source import check_source


@dataclass(frozen=True)
class CyclicPoissonSampling(Sampling):
    """Batch number b of an epoch is a Poisson sample of the records i with ``i % groups == b % groups``.

    Choquette-Choo et al. 2023, arXiv:2306.08153. A record can be in every ``groups``-th batch only, such as where each
    group is a file of its own.

    Attributes:
        records: number of records in the dataset, at least 1.
        groups: number of groups, in [1, records].
        sample_rate: inclusion probability within the group, in (0, 1].
        steps_per_epoch: batches per epoch, at least 1; each epoch begins with group 0.

    Raises:
        ConfigurationError: a value outside these ranges.
    """

    records: int
    groups: int
    sample_rate: float
    steps_per_epoch: int

    def __post_init__(self) -> None:
        for name in ("records", "groups", "steps_per_epoch"):
            checked_count(name, getattr(self, name))
        checked_rate(self.sample_rate)
        if self.groups > self.records:
            raise ConfigurationError(f"groups is {self.groups}, but there are {self.records} records.")

    @classmethod
    def from_loader(cls, loader: DataLoader[Any], *, groups: int) -> CyclicPoissonSampling:
        """As many batches as an ordinary loader has, of the same expected size; each record is met once per epoch.

        Raises:
            SamplingError: see :func:`tacit.sampling.check_source`.
            ConfigurationError: there are more groups than batches.
        """
        loader = whole(loader)
        records, steps = check_source(loader, poisson=True), len(loader)
        if checked_count("groups", groups) > steps:
            raise ConfigurationError(
                f"groups is {groups}, but the loader has {steps} batches per epoch, so that a group would have to be "
                "drawn more than whole. Use fewer groups, or smaller batches."
            )
        return cls(records, groups, groups / steps, steps)

    @property
    def expected_batch_size(self) -> float:
        """records * sample_rate / groups."""
        return self.records * self.sample_rate / self.groups

    @property
    def amplified(self) -> bool:
        """True, unless every record of a group joins each of its batches."""
        return self.sample_rate < 1.0

    @property
    def description(self) -> str:
        """One sentence for a privacy statement."""
        return (
            f"Cyclic Poisson sampling: {self.records} records in {self.groups} groups by their place; batches take the "
            f"groups in turn, each record of one joining with probability {self.sample_rate:.6g}; privacy "
            "amplification by sampling is claimed."
        )

    def batches(self, generator: torch.Generator) -> Iterator[list[int]]:
        """``steps_per_epoch`` independent batches of ascending indices, groups in turn."""
        for step in range(self.steps_per_epoch):
            group = step % self.groups
            members = range(group, self.records, self.groups)
            yield [members[place] for place in poisson_batch(len(members), self.sample_rate, generator)]

    def event(self, noise_multiplier: float, draws: Sequence[Draw]) -> Release:
        """A release of draws from one group.

        Raises:
            SamplingError: ``draws`` is empty, from several groups, or spans two epochs.
        """
        epoch = check_one_epoch(draws)
        groups = {draw.place % self.groups for draw in draws}
        if len(groups) != 1:
            raise SamplingError(
                f"One release was made of batches of the groups {sorted(groups)}, for which no proof is known here. "
                "Step after each batch; for larger batches use fewer groups or a larger batch_size."
            )
        return CyclicRelease(noise_multiplier, self.sample_rate, groups.pop(), epoch, len(draws))

    def planned(
        self, noise_multiplier: float, releases: int, *, epoch: int = 1, place: int = 0, draws: int = 1
    ) -> list[tuple[Release, int]]:
        """See :meth:`Sampling.planned`: for each pass over the data how often each group has its turn."""
        found = []
        while releases > 0:
            count = min(releases, self.steps_per_epoch - place)
            for group in range(min(self.groups, place + count)):
                if turns := self._turns(group, place, count):
                    release = self.event(noise_multiplier, [Draw(0, epoch, 0, group)] * draws)
                    found.append((release, turns))
            releases, epoch, place = releases - count, epoch + 1, 0
        return found

    def _turns(self, group: int, place: int, batches: int) -> int:
        """How many of some batches, the first of which is at ``place``, are of a group."""
        whole, rest = divmod(batches, self.groups)
        return whole + ((group - place) % self.groups < rest)
