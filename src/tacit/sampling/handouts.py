"""The batch sampler of a private loader: lists of indices, and what each one is part of."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from tacit.sampling.base import Sampling
from tacit.sampling.generators import global_generator
from tacit.sampling.parts import Part


@dataclass(frozen=True)
class Handout:
    """What is known of one physical batch when it is handed out.

    Attributes:
        logical_records: units of privacy (mostly records) in the whole logical batch, or in this process's part of it.
        records: units of privacy in this physical batch.
        first: it begins a logical batch.
        last: it ends a logical batch.
        owners: the unit of each row, where several rows are one.
        padding: how many blank rows stand behind the others.
    """

    logical_records: int
    records: int
    first: bool
    last: bool
    owners: tuple[int, ...] | None = None
    padding: int = 0


class EpochIndices(Iterator[list[int]]):
    """One epoch's lists of indices, each at most ``max_records`` long.

    ``waiting`` holds a Handout for each list that was drawn and not yet handed out, oldest first:
    workers prefetch, so the sampler runs ahead of the batches, but they arrive in order.
    """

    def __init__(
        self, sampling: Sampling, batches: Iterator[list[int]], max_records: int | None, part: Part | None = None
    ) -> None:
        self.waiting: deque[Handout] = deque()
        self._pieces = _pieces(sampling, batches, max_records, part or Part())

    def __next__(self) -> list[int]:
        indices, handout = next(self._pieces)
        self.waiting.append(handout)
        return indices


def _pieces(
    sampling: Sampling, batches: Iterator[list[int]], max_records: int | None, part: Part
) -> Iterator[tuple[list[int], Handout]]:
    padded = part.rows(sampling.padded_size)
    for whole in batches:
        owners_of_all = sampling.owners(whole)
        batch, owners = _taken(whole, owners_of_all, part, part.rank)
        units = len(batch if owners is None else set(owners))
        ends = _ends(len(batch), owners, max_records)
        if max_records is not None:
            # As many pieces as the process has that needs most: so all run as many backwards, and wait for each other
            # as often.
            others = (_taken(whole, owners_of_all, part, rank) for rank in range(part.count) if rank != part.rank)
            most = max((len(_ends(len(rows), whose, max_records)) for rows, whose in others), default=0)
            ends += [len(batch)] * (most - len(ends))
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False), 1):
            indices = batch[start:end]
            mine = None if owners is None else tuple(owners[start:end])
            count = len(indices if mine is None else set(mine))
            padding = 0 if padded is None else padded - len(indices)
            yield indices, Handout(units, count, number == 1, number == len(ends), mine, padding)


def _taken(batch: list[int], owners: list[int] | None, part: Part, rank: int) -> tuple[list[int], list[int] | None]:
    """A process's rows of a batch, and whose they are."""
    if part.count == 1:
        return batch, owners
    places = part.of(batch, owners, rank)
    return [batch[place] for place in places], None if owners is None else [owners[place] for place in places]


def _ends(rows: int, owners: list[int] | None, most: int | None) -> list[int]:
    """Where the pieces of a batch end. Rows of one unit, which stand behind each other, are never parted."""
    if most is None or rows <= most:
        return [rows]
    if owners is None:
        # Full pieces and one rest rather than equal pieces: fewer shapes to compile for.
        return [*range(most, rows, most), rows]
    ends, start, last = [], 0, 0
    for place in [*(at for at in range(1, rows) if owners[at] != owners[at - 1]), rows]:
        if place - start > most and last > start:
            ends.append(last)
            start = last
        last = place
    return [*ends, rows]


class HandoutSampler(Sampler[list[int]]):
    """A DataLoader's batch sampler that draws from a :class:`Sampling`.

    Attributes:
        generator: draws the indices of the next iteration.
        max_records: split what the next iteration draws into pieces of at most this many records.
        latest: what the latest iteration drew.
    """

    latest: EpochIndices

    def __init__(self, sampling: Sampling, generator: torch.Generator | None, part: Part | None = None) -> None:
        self.sampling = sampling
        self._part = part or Part()
        self.generator = generator
        self.max_records: int | None = None

    def __iter__(self) -> Iterator[list[int]]:
        # DataLoader may ask twice before it uses one; nothing is drawn before the first next().
        self.latest = EpochIndices(self.sampling, self._batches(), self.max_records, self._part)
        return self.latest

    def __len__(self) -> int:
        return self.sampling.steps_per_epoch

    def _batches(self) -> Iterator[list[int]]:
        generator = global_generator() if self.generator is None else self.generator
        yield from self.sampling.batches(generator)
