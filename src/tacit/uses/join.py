"""Several uses of one parameter: a sample's gradient is their sum, so they are joined before any norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tacit.uses.base import Use
from tacit.uses.dense import Dense
from tacit.uses.gather import Gather
from tacit.uses.numerics import cancelled, cautious, excessive, sample_squares, sizes, wide, wide_dtype
from tacit.uses.outer import Outer
from tacit.uses.questions import any_of
from tacit.uses.routed import Routed
from tacit.uses.units import Units


class TableAndHead(Use):
    """A table that is both looked up and multiplied: tied input embedding and output layer.

    Norms come from ``‖E + H‖² = ‖E‖² + ‖H‖² + 2⟨E, H⟩``; the dense gradients (B, V, d) are never formed.
    """

    def __init__(self, table: Gather, head: Outer) -> None:
        self.table = table
        self.head = head
        self.samples = table.samples
        self.shape = table.shape

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (*self.table.parts, *self.head.parts)

    def squared_norms(self) -> Tensor:
        table, head = self.table.squared_norms(), self.head.squared_norms()
        products = self._products()
        squares = table + head + 2 * products.sum((1, 2), dtype=torch.float64)
        precision = wide_dtype(self.head.a)
        # Not from the norms of both: what cancels within one has left its rounding errors in their product.
        bound = (self.table.lengths() + self.head.lengths()).square()
        doubtful = cancelled(squares, bound, precision)
        squares = cautious(squares, table + head + 2 * sizes(products), precision)
        if any_of(doubtful):
            squares[doubtful] = sample_squares(self._part(doubtful).dense())
        return squares

    def _products(self) -> Tensor:
        # (B, T, T); their sum is ⟨E, H⟩ = sum_{t,s} g_head[s, id_t] (g_table[t] · a[s])
        a, g = wide(self.head.a), wide(self.head.g)
        products = torch.bmm(a, wide(self.table.g).to(a.dtype).transpose(1, 2))
        picked = g.gather(2, self.table.ids[:, None, :].expand(-1, g.shape[1], -1))
        return products.mul_(picked)

    def _part(self, chosen: Tensor) -> TableAndHead:
        head = Outer(self.head.a[chosen].double(), self.head.g[chosen].double(), self.head.shape)
        return TableAndHead(self.table.in_double(chosen), head)

    def forget(self) -> None:
        super().forget()
        self.table.forget()
        self.head.forget()

    def excess(self, factors: Tensor, limit: float) -> Tensor:
        return excessive(self.head.lengths() + self.table.lengths(), factors, limit)

    def weighted_sum(self, factors: Tensor, limit: float | None) -> Tensor:
        if limit is None or not any_of(apart := self.excess(factors, limit)):
            return self.table.weighted_sum(factors, limit) + self.head.weighted_sum(factors, limit)
        kept, rest = factors.masked_fill(apart, 0), self._part(apart)
        total = self.table.weighted_sum(kept, limit) + self.head.weighted_sum(kept, limit)
        # What cancels between the two cancels before it is rounded to float32.
        return total.add_(rest.table.weighted_sum(factors[apart], None) + rest.head.weighted_sum(factors[apart], None))

    def dense(self) -> Tensor:
        return self.table.dense() + self.head.dense()

    def without(self, dropped: Tensor) -> Use:
        table, head = self.table.without(dropped), self.head.without(dropped)
        assert isinstance(table, Gather)
        assert isinstance(head, Outer)
        return TableAndHead(table, head)

    def transposed(self) -> Use:
        return Dense(self.dense().transpose(1, 2))

    def grouped(self, units: Units) -> Use:
        return Dense(self.dense()).grouped(units)

    def reshaped(self, shape: torch.Size) -> Use:
        return Dense(self.dense().reshape(self.samples, *shape))

    def placed(self, first: int, rows: int) -> Use:
        return Dense(self.dense()).placed(first, rows)


def join(uses: Sequence[Use]) -> Use:
    """Return one use whose ``G`` is the sum of the given ones'. All must have the same samples and shape."""
    if len(uses) == 1:
        return uses[0]
    if all(isinstance(use, Gather) for use in uses):
        return _join_gathers([use for use in uses if isinstance(use, Gather)])
    routed = [use for use in uses if isinstance(use, Routed)]
    if len(routed) == len(uses) and len({use.flipped for use in routed}) == 1:
        return _join_routed(routed)
    outers = [use for use in uses if isinstance(use, Outer)]
    kinds = {(use.flipped, use.a.shape[2], use.g.shape[2]) for use in outers}
    if len(outers) == len(uses) and len(kinds) == 1:
        return _join_outers(outers)
    gathers = [use for use in uses if isinstance(use, Gather)]
    heads = [use for use in outers if not use.flipped and use.shape == (use.g.shape[2], use.a.shape[2])]
    if gathers and len(kinds) == 1 and len(gathers) + len(heads) == len(uses):
        return TableAndHead(_join_gathers(gathers), _join_outers(heads))
    total = uses[0].dense()
    for use in uses[1:]:
        total = total + use.dense()
    return Dense(total)


def _join_outers(uses: Sequence[Outer]) -> Outer:
    if len(uses) == 1:
        return uses[0]
    a, g = torch.cat([use.a for use in uses], 1), torch.cat([use.g for use in uses], 1)
    return Outer(a, g, uses[0].shape, flipped=uses[0].flipped, formed=all(use.formed for use in uses))


def _join_routed(uses: Sequence[Routed]) -> Routed:
    a, g, expert = (torch.cat(parts, 1) for parts in zip(*((use.a, use.g, use.expert) for use in uses), strict=True))
    return Routed(a, g, expert, uses[0].shape[0], flipped=uses[0].flipped)


def _join_gathers(uses: Sequence[Gather]) -> Gather:
    if len(uses) == 1:
        return uses[0]
    ids, g = torch.cat([use.ids for use in uses], 1), torch.cat([use.g for use in uses], 1)
    return Gather(ids, g, uses[0].shape[0])
