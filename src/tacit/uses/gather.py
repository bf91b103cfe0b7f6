"""The use of a table that is read by row: ``G[b][v] = sum over the t with ids[b, t] = v of g[b, t]``."""

from __future__ import annotations

import torch
from torch import Tensor

from tacit.uses.base import Use, zero_samples
from tacit.uses.dense import Dense
from tacit.uses.numerics import cancelled, excessive, sample_squares, wide, wide_dtype
from tacit.uses.questions import any_of
from tacit.uses.units import Units


class Gather(Use):
    """Row numbers ``ids`` (B, T) and output gradients ``g`` (B, T, d) of a look-up in a table (V, d)."""

    def __init__(self, ids: Tensor, g: Tensor, rows: int) -> None:
        self.ids = ids
        self.g = g
        self.samples = ids.shape[0]
        self.shape = torch.Size((rows, g.shape[2]))
        self._segments: tuple[Tensor, Tensor] | None = None
        self._lengths: Tensor | None = None

    def segments(self) -> tuple[Tensor, Tensor]:
        """Return the distinct rows of each sample and their summed gradients.

        Returns:
            ``rows`` (B, T) and ``sums`` (B, T, d): ``sums[b, k]`` is the gradient of sample b's k-th distinct row,
            ``rows[b, k]``. Past the last distinct row sums are zero (and rows 0). No tensor of the table's size is
            formed.
        """
        if self._segments is None:
            ids, order = self.ids.sort(dim=1)
            starts = torch.ones_like(ids, dtype=torch.bool)
            starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
            segments = starts.cumsum(1) - 1
            rows = torch.zeros_like(ids).scatter_(1, segments, ids)
            segment = torch.empty_like(segments).scatter_(1, order, segments)
            self._segments = rows, _row_sums(wide(self.g), segment, ids.shape[1])
        return self._segments

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.ids, self.g

    def lengths(self) -> Tensor:
        """The sum of the lengths of each sample's gradients: ``(B,)``, float64."""
        if self._lengths is None:
            self._lengths = torch.linalg.vector_norm(wide(self.g), dim=2).sum(1, dtype=torch.float64)
        return self._lengths

    def squared_norms(self) -> Tensor:
        """Those of the sums; again in float64 where gradients of one row cancel."""
        squares = sample_squares(self.segments()[1])
        doubtful = cancelled(squares, self.lengths().square(), wide_dtype(self.g))
        if any_of(doubtful):
            squares[doubtful] = sample_squares(self.in_double(doubtful).segments()[1])
        return squares

    def excess(self, factors: Tensor, limit: float) -> Tensor:
        return excessive(self.lengths(), factors, limit)

    def weighted_sum(self, factors: Tensor, limit: float | None) -> Tensor:
        if limit is None or not any_of(apart := self.excess(factors, limit)):
            return self._sum(factors)
        return self._sum(factors.masked_fill(apart, 0)).add_(self.in_double(apart)._sum(factors[apart]))

    def _sum(self, factors: Tensor) -> Tensor:
        rows, sums = self.segments()
        weighted = sums * factors.to(sums.dtype)[:, None, None]
        total = torch.zeros(self.shape, dtype=sums.dtype, device=sums.device)
        return total.index_add_(0, rows.flatten(), weighted.flatten(0, 1))

    def in_double(self, chosen: Tensor) -> Gather:
        """Some samples (a mask or numbers), in float64."""
        return Gather(self.ids[chosen], self.g[chosen].double(), self.shape[0])

    def dense(self) -> Tensor:
        return _row_sums(wide(self.g), self.ids, self.shape[0])

    def without(self, dropped: Tensor) -> Use:
        return Gather(self.ids, zero_samples(self.g, dropped), self.shape[0])

    def transposed(self) -> Use:
        return Dense(self.dense().transpose(1, 2))

    def grouped(self, units: Units) -> Use:
        return Gather(units.pack(self.ids), units.pack(self.g), self.shape[0])

    def reshaped(self, shape: torch.Size) -> Use:
        return Dense(self.dense().reshape(self.samples, *shape))

    def placed(self, first: int, rows: int) -> Use:
        return Gather(self.ids + first, self.g, rows)


def _row_sums(g: Tensor, ids: Tensor, rows: int) -> Tensor:
    """``(B, rows, d)``: ``[b, v]`` is the sum of ``g[b, t]`` (B, T, d) over the t with ``ids[b, t] = v``.

    Whole rows are added: an index for each number, as ``scatter_add`` takes it, was eight times as slow.
    """
    samples, _, width = g.shape
    first = rows * torch.arange(samples, device=ids.device)
    total = torch.zeros((samples * rows, width), dtype=g.dtype, device=g.device)
    return total.index_add_(0, (ids + first[:, None]).flatten(), g.flatten(0, 1)).view(samples, rows, width)
