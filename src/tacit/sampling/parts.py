"""Which part of every batch one of several processes takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler

from tacit.distributed import world_size
from tacit.entropy import keyed_generator
from tacit.errors import SamplingError


@dataclass(frozen=True)
class Part:
    """One process's part of batches that all processes draw alike, each by itself.

    All draw from one key: so they agree on every batch, over the whole data set, without asking each other, and each
    takes every ``count``-th unit of it.

    Attributes:
        rank: the number of this process.
        count: how many there are.
        key: the secret that they share, 32 bytes; None for one process.
    """

    rank: int = 0
    count: int = 1
    key: bytes | None = None

    def of(self, batch: Sequence[int], owners: Sequence[int] | None, rank: int) -> list[int]:
        """The places in ``batch`` that a process takes: rows of one unit stay together."""
        if owners is None:
            return list(range(rank, len(batch), self.count))
        order = {unit: number for number, unit in enumerate(dict.fromkeys(owners))}
        return [place for place, unit in enumerate(owners) if order[unit] % self.count == rank]

    def rows(self, most: int | None) -> int | None:
        """How many rows a process gets at most of a batch of at most ``most``; None for no limit."""
        return None if most is None else -(-most // self.count)

    def generator(self, epoch: int, purpose: str) -> torch.Generator | None:
        """What draws the batches of an epoch, for a purpose; None if there is no key.

        Each epoch has its own: however far ahead a process has read in the last one, the next is the same for all.
        """
        return None if self.key is None else keyed_generator(self.key, f"draws of epoch {epoch} of {purpose}")


def is_parted(loader: DataLoader[Any]) -> bool:
    """Whether a loader was built with torch's own sampler for one of several processes."""
    return type(loader.sampler) is DistributedSampler


def whole(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader like those of all processes together: its batches are as large as theirs in sum, its data set is whole.

    Args:
        loader: the loader of one process, over the whole data set; its ``batch_size`` is that of one process. A
            DistributedSampler, which parts the data set among the processes, is replaced.

    Returns:
        A loader to read off how batches shall be drawn; ``loader`` itself where nothing is to be changed.

    Raises:
        SamplingError: a DistributedSampler parts another data set, or among another number of processes.
    """
    plain = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
    if not plain or loader.batch_size is None or isinstance(loader.dataset, IterableDataset):
        return loader  # it is refused elsewhere
    sampler, processes = loader.sampler, world_size()
    parted = is_parted(loader)
    if isinstance(sampler, DistributedSampler) and parted:
        if sampler.num_replicas != processes:
            raise SamplingError(
                f"the DataLoader's DistributedSampler parts the data among {sampler.num_replicas} processes, and "
                f"{processes} train together. Call init_process_group() first, and leave num_replicas= out."
            )
        if sampler.dataset is not loader.dataset:
            raise SamplingError(
                "the DataLoader's DistributedSampler is of another data set than the DataLoader. Build both over the "
                "whole data set: each process draws from all of it."
            )
    if not parted and processes == 1:
        return loader
    shuffle = sampler.shuffle if isinstance(sampler, DistributedSampler) else isinstance(sampler, RandomSampler)
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size * processes,
        shuffle=shuffle if parted else None,
        sampler=None if parted else sampler,
        drop_last=loader.drop_last,
        num_workers=loader.num_workers,
        in_order=loader.in_order,
        generator=loader.generator,
    )
