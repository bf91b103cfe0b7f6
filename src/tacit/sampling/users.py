"""Users, or whatever several records belong to, as units of privacy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tacit.accounting.checks import checked_count, checked_rate
from tacit.accounting.releases import PoissonRelease, Release
from tacit.errors import ConfigurationError
from tacit.sampling.base import Sampling, check_some
from tacit.sampling.draws import Draw
from tacit.sampling.fixed import random_part
from tacit.sampling.parts import whole
from tacit.sampling.poisson import poisson_batch
from tacit.sampling.source import check_source


@dataclass(frozen=True, eq=False)
class UserPoissonSampling(Sampling):
    """Each user joins each batch independently, with at most ``most`` records, and is clipped as one.

    Epsilon is then that of one user with all records. Which records of a user who has more are taken is drawn anew each
    time. Rows must stay in the order in which they are handed out: their place says whose they are.

    Source: McMahan et al. 2018, arXiv:1710.06963; the accounting is that of Poisson sampling of users.

    Attributes:
        users: ``(records,)``, integers: whose each record is.
        sample_rate: inclusion probability of a user, in (0, 1].
        steps_per_epoch: batches per epoch, at least 1.
        most: most records of one user in a batch, at least 1.
        records: number of records in the dataset.

    Raises:
        ConfigurationError: a value outside these ranges.
    """

    users: Tensor
    sample_rate: float
    steps_per_epoch: int
    most: int
    records: int = field(init=False)
    _members: list[list[int]] = field(init=False, repr=False)
    _owner: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.users, Tensor) or self.users.dim() != 1 or self.users.is_floating_point():
            raise ConfigurationError("users must be a vector of integers: whose each record of the dataset is.")
        checked_rate(self.sample_rate)
        for name in ("steps_per_epoch", "most"):
            checked_count(name, getattr(self, name))
        _, owner, sizes = self.users.unique(return_inverse=True, return_counts=True)
        members: list[list[int]] = [part.tolist() for part in owner.argsort(stable=True).split(sizes.tolist())]
        object.__setattr__(self, "users", self.users.clone())  # not the caller's, who may change it
        object.__setattr__(self, "records", checked_count("records", len(self.users)))
        object.__setattr__(self, "_members", members)
        object.__setattr__(self, "_owner", owner.tolist())

    @classmethod
    def from_loader(cls, loader: DataLoader[Any], *, users: Tensor | Sequence[int], most: int) -> UserPoissonSampling:
        """The sampling of users that replaces an ordinary loader, at the rate 1 / len(loader).

        Raises:
            SamplingError: see :func:`tacit.sampling.check_source`.
            ConfigurationError: ``users`` does not fit the dataset.
        """
        loader = whole(loader)
        records = check_source(loader, poisson=True)
        owners = torch.as_tensor(users)
        if owners.dim() != 1 or len(owners) != records:
            raise ConfigurationError(
                f"users has the shape {tuple(owners.shape)} and the dataset {records} records: one for each record."
            )
        return cls(owners, 1.0 / len(loader), len(loader), most)

    @property
    def units(self) -> int:
        """Number of users."""
        return len(self._members)

    @property
    def unit(self) -> str:
        """``"user"``."""
        return "user"

    @property
    def expected_batch_size(self) -> float:
        """Users per batch: units * sample_rate."""
        return self.units * self.sample_rate

    @property
    def amplified(self) -> bool:
        """True, unless every user joins every batch."""
        return self.sample_rate < 1.0

    @property
    def description(self) -> str:
        """One sentence for a privacy statement."""
        return (
            f"Poisson sampling of users: each of {self.units} users joins each batch independently with probability "
            f"{self.sample_rate:.6g}, with at most {self.most} of their records, clipped together; privacy "
            "amplification by sampling is claimed."
        )

    def owners(self, indices: Sequence[int]) -> list[int]:
        """The user of each record, counted from 0."""
        return [self._owner[index] for index in indices]

    def batches(self, generator: torch.Generator) -> Iterator[list[int]]:
        """``steps_per_epoch`` independent batches; the records of a user stand behind each other."""
        for _ in range(self.steps_per_epoch):
            batch: list[int] = []
            for user in poisson_batch(self.units, self.sample_rate, generator):
                members = self._members[user]
                batch += members if len(members) <= self.most else random_part(members, self.most, generator)
            yield batch

    def event(self, noise_multiplier: float, draws: Sequence[Draw]) -> Release:
        """A Poisson release, of users, of as many draws as contributed.

        Raises:
            SamplingError: ``draws`` is empty.
        """
        return PoissonRelease(noise_multiplier, self.sample_rate, check_some(draws))
