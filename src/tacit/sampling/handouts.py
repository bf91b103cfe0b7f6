"""The batch sampler of a private loader: lists of indices, and what each one is part of."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from tacit.sampling.base import Sampling
from tacit.sampling.generators import global_generator


@dataclass(frozen=True)
class Handout:
    """What is known of one physical batch when it is handed out.

    Attributes:
        logical_records: records in the whole logical batch.
        records: records in this physical batch.
        first: it begins a logical batch.
        last: it ends a logical batch.
    """

    logical_records: int
    records: int
    first: bool
    last: bool


class EpochIndices(Iterator[list[int]]):
    """One epoch's lists of indices, each at most ``max_records`` long.

    ``waiting`` holds a Handout for each list that was drawn and not yet handed out, oldest first:
    workers prefetch, so the sampler runs ahead of the batches, but they arrive in order.
    """

    def __init__(self, batches: Iterator[list[int]], max_records: int | None) -> None:
        self.waiting: deque[Handout] = deque()
        self._pieces = _pieces(batches, max_records)

    def __next__(self) -> list[int]:
        indices, handout = next(self._pieces)
        self.waiting.append(handout)
        return indices


def _pieces(batches: Iterator[list[int]], max_records: int | None) -> Iterator[tuple[list[int], Handout]]:
    for batch in batches:
        size = len(batch) if max_records is None else max_records
        # Full pieces and one rest rather than equal pieces: fewer shapes to compile for.
        starts = range(0, len(batch), size) if batch else range(1)
        for start in starts:
            indices = batch[start : start + size]
            last = start == starts[-1]
            yield indices, Handout(len(batch), len(indices), first=start == 0, last=last)


class HandoutSampler(Sampler[list[int]]):
    """A DataLoader's batch sampler that draws from a :class:`Sampling`.

    Attributes:
        max_records: split what the next iteration draws into pieces of at most this many records.
        latest: what the latest iteration drew.
    """

    latest: EpochIndices

    def __init__(self, sampling: Sampling, generator: torch.Generator | None) -> None:
        self.sampling = sampling
        self.generator = generator
        self.max_records: int | None = None

    def __iter__(self) -> Iterator[list[int]]:
        # DataLoader may ask twice before it uses one; nothing is drawn before the first next().
        self.latest = EpochIndices(self._batches(), self.max_records)
        return self.latest

    def __len__(self) -> int:
        return self.sampling.steps_per_epoch

    def _batches(self) -> Iterator[list[int]]:
        generator = global_generator() if self.generator is None else self.generator
        yield from self.sampling.batches(generator)
