"""Where the samples of a batch sit in a tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from tacit.uses import rows as routed


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The sample to which each row of a tensor belongs.

    Position ``i`` of dimension ``dim`` belongs to sample ``(i // inner) % samples``, so that the dimension has
    the size ``outer · samples · inner``. Examples with B samples and T positions: ``(B, T, d)`` is
    ``Layout(B, 0)``; ``(T, B, d)`` is ``Layout(B, 1)``; ``(B·T, d)``, batch-major, is ``Layout(B, 0, inner=T)``;
    two views of the batch concatenated, ``(2B, d)``, are ``Layout(B, 0, outer=2)``. Sizes alone cannot tell
    these apart when B = T, which is why the layout is followed from call to call.

    Rows that were picked, permuted or routed have no such pattern: then ``owner`` names each row's sample, and outer
    and inner are 1. Make these with ``Layout.owned``, which keeps the pattern where there still is one. Layouts are
    equal if they say the same of every row.

    Attributes:
        owner: the sample of each row, int64, ``(rows,)``. A sample may own no row. The *place* of a row then depends
            on other samples, so that no slice is taken of such rows.
        group: what rows were sorted by, ``(rows,)``: unlike its place, that is each row's own sample's doing.
    """

    samples: int
    dim: int
    outer: int = 1
    inner: int = 1
    owner: Tensor | None = field(default=None, repr=False)
    group: Tensor | None = field(default=None, repr=False)

    @staticmethod
    def owned(samples: int, dim: int, owner: Tensor, group: Tensor | None = None) -> Layout:
        """Return the layout of rows with the given owners, as a pattern if they follow one."""
        if samples == 1:
            return Layout(1, dim, 1, len(owner))
        block = routed.pattern(owner, samples)
        if block is not None:
            return Layout(samples, dim, len(owner) // (samples * block), block)
        return Layout(samples, dim, 1, 1, owner, group)

    @property
    def _is_plain(self) -> bool:
        """Whether dimension 0 has one row of each sample."""
        return self.dim == 0 and self.owner is None and self.outer == 1 and self.inner == 1

    @property
    def rows(self) -> int:
        """The size of the batch dimension."""
        return self.outer * self.samples * self.inner if self.owner is None else len(self.owner)

    def owners(self, device: torch.device | None = None) -> Tensor:
        """The sample of each row: shape ``(rows,)``, int64."""
        if self.owner is not None:
            return self.owner if device is None else self.owner.to(device)
        return torch.arange(self.rows, device=device) // max(self.inner, 1) % self.samples

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Layout):
            return NotImplemented
        if (self.samples, self.dim, self.rows) != (other.samples, other.dim, other.rows):
            return False
        if self.owner is other.owner:  # the same, or two patterns
            return self.samples == 1 or (self.outer, self.inner) == (other.outer, other.inner)
        device = (self.owners() if other.owner is None else other.owner).device
        return torch.equal(self.owners(device), other.owners(device))

    def __hash__(self) -> int:
        return hash(self.dim)  # sizes may be symbols, which have no hash

    def fits(self, shape: torch.Size) -> bool:
        return 0 <= self.dim < len(shape) and shape[self.dim] == self.rows  # asked of almost every call

    def at(self, dim: int) -> Layout:
        """The same rows in another dimension."""
        if dim == self.dim:
            return self
        return Layout(self.samples, dim, self.outer, self.inner, self.owner, self.group)

    def picked(self, index: Tensor, group: Tensor | None = None) -> Layout:
        """The rows ``index`` (int64, 1-d), in that order.

        Args:
            index: row numbers.
            group: their groups, if their places depend on other samples.
        """
        owner = self.owners(index.device)[index]
        if group is None and self.group is not None:
            group = self.group.to(index.device)[index]
        return Layout.owned(self.samples, self.dim, owner, group)

    def section(self, start: int, stop: int) -> Layout | None:
        """The rows from ``start`` to ``stop``; None if that treats samples differently."""
        if (start, stop) == (0, self.rows):
            return self
        block = self.samples * self.inner
        if self.owner is not None or start % block or stop <= start or (stop - start) % block:
            return None
        return Layout(self.samples, self.dim, (stop - start) // block, self.inner)

    def repeated(self, times: int) -> Layout:
        """All rows, several times over: x, x, …"""
        if self.owner is None:
            return Layout(self.samples, self.dim, self.outer * times, self.inner)
        return self.picked(torch.arange(self.rows, device=self.owner.device).repeat(times))

    def split(self, values: Tensor) -> Tensor:
        """Bring the samples to the front: ``(B, ...)`` with all else, in order, behind; ``outer`` and ``inner`` apart.

        Returns:
            A tensor of shape ``(B, outer?, ..., inner?, ...)``, without the factors that are 1. Rows with owners
            become ``(B, ..., T, ...)`` with T the most rows of any sample, filled up with zeros.
        """
        if self.owner is not None:
            return routed.packed(values.movedim(self.dim, 0), self.owners(values.device), self.samples).movedim(
                1, self.dim + 1
            )
        if self.dim == 0 and self.outer == 1:
            grouped: Tensor = values if self.inner == 1 else values.unflatten(0, (self.samples, self.inner))
            return grouped
        parts: Tensor = values.unflatten(self.dim, (self.outer, self.samples, self.inner))
        parts = parts.movedim(self.dim + 1, 0)
        # dimensions now: B, [before], outer, inner, [after]
        at = self.dim + 1
        if self.inner == 1:
            parts = parts.squeeze(at + 1)
        if self.outer == 1:
            parts = parts.squeeze(at)
        return parts

    def rows_of(self, values: Tensor, features: int = 1) -> Tensor:
        """Read a tensor as positions of features per sample.

        Args:
            values: a tensor of this layout whose last ``features`` dimensions are features.
            features: how many trailing dimensions to keep.

        Returns:
            Shape ``(B, T, *values.shape[-features:])``. Rows with owners are filled up with zeros: what reads them
            must let a row of zeros contribute nothing. Not to be changed: it may be ``values`` itself.
        """
        if self._is_plain and values.dim() == features + 2:  # as in most models
            return values
        parts = self.split(values)
        behind = parts.dim() - features
        # In numbers: torch finds no missing one where there are no features.
        return parts.reshape(self.samples, prod(parts.shape[1:behind]), *parts.shape[behind:])

    def totals(self, values: Tensor, features: int = 1) -> Tensor:
        """The sum over each sample's positions: ``(B, *values.shape[-features:])``. See :meth:`rows_of`.

        Where each sample has one position it is ``values`` itself, not to be changed.
        """
        if self._is_plain and values.dim() == features + 1:
            return values
        return self.rows_of(values, features).sum(1)

    def reshaped(self, before: torch.Size, after: torch.Size) -> Layout | None:
        """Follow a row-major reshape from shape ``before`` to ``after``; None if samples are torn apart."""
        if self.owner is not None:
            return self._regrouped(before, after)
        behind = self.inner * prod(before[self.dim + 1 :])
        suffix = prod(after)
        for dim, size in enumerate(after):
            rest = suffix // size if size else 0
            if rest and behind % rest == 0 and suffix % (behind * self.samples) == 0 and rest <= behind:
                return Layout(self.samples, dim, suffix // (behind * self.samples), behind // rest)
            suffix = rest
        return None

    def _regrouped(self, before: torch.Size, after: torch.Size) -> Layout | None:
        """Rows with owners through a reshape: split rows, and merge rows of one sample."""
        assert self.owner is not None
        in_front, behind = prod(before[: self.dim]), prod(before[self.dim + 1 :])
        for dim, size in sorted(enumerate(after), key=lambda item: -item[1]):
            front, rest = prod(after[:dim]), prod(after[dim + 1 :])
            if front == 0 or in_front % front or front * size * rest != in_front * self.rows * behind:
                continue
            rows = self if front == in_front else self.repeated(in_front // front)
            owner, group = rows.owners(self.owner.device), rows.group
            if rest and behind % rest == 0:
                owner = owner.repeat_interleave(behind // rest)
                group = None if group is None else group.repeat_interleave(behind // rest)
                return Layout.owned(self.samples, dim, owner, group)
            if behind and rest % behind == 0 and group is None:
                several = owner.view(-1, rest // behind)
                if bool((several == several[:, :1]).all()):
                    return Layout.owned(self.samples, dim, several[:, 0])
        return None
