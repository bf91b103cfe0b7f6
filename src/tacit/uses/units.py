"""Rows that belong together: which unit of privacy each row of a batch is part of."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class Units:
    """The unit of each of R rows.

    Args:
        index: ``(R,)``, integers: rows with the same number are one unit.

    Attributes:
        owner: ``(R,)``, int64: the unit of each row, counted from 0 in the order of the numbers.
        count: the number U of units.
    """

    def __init__(self, index: Tensor) -> None:
        distinct, self.owner = torch.unique(index, return_inverse=True)
        self.count = len(distinct)

    @cached_property
    def sizes(self) -> Tensor:
        """How many rows each unit has: ``(U,)``."""
        return torch.bincount(self.owner, minlength=self.count)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """The rows of each unit, ``(U, K)`` with K the most of any; and which of these places are empty."""
        most = int(self.sizes.max()) if self.count else 0
        order = self.owner.argsort(stable=True)
        first = self.sizes.cumsum(0) - self.sizes
        within = torch.arange(len(order), device=order.device) - first[self.owner[order]]
        places = torch.zeros((self.count, most), dtype=torch.int64, device=order.device)
        places[self.owner[order], within] = order
        empty = torch.arange(most, device=order.device) >= self.sizes[:, None]
        return places, empty

    def pack(self, values: Tensor) -> Tensor:
        """Put the rows of a unit behind each other: ``(R, T, ...)`` → ``(U, K · T, ...)``, zeros where none is."""
        places, empty = self._places
        packed = values[places]
        packed.masked_fill_(empty.reshape(*empty.shape, *[1] * (values.dim() - 1)), 0)
        return packed.flatten(1, 2)

    def total(self, values: Tensor) -> Tensor:
        """Sum over the rows of each unit: ``(R, ...)`` → ``(U, ...)``."""
        return values.new_zeros((self.count, *values.shape[1:])).index_add_(0, self.owner, values)

    def alike(self, other: Units | None) -> bool:
        """Whether the two divide the rows in the same way."""
        return other is not None and torch.equal(self.owner, other.owner)
