"""The use of a stack of matrices of which each row of the batch meets one: experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.uses.base import Use, zero_samples
from tacit.uses.dense import Dense
from tacit.uses.numerics import cautious, excessive, sample_squares, sizes, untrusted, wide
from tacit.uses.questions import any_of
from tacit.uses.units import Units


class Routed(Use):
    """Inputs ``a`` (B, T, d), output gradients ``g`` (B, T, p), and the matrix ``expert`` (B, T) that each row met.

    ``G[b][e]`` is the sum over the rows t of expert e of ``g[b, t] ⊗ a[b, t]``, p × d (d × p if ``flipped``).
    """

    def __init__(self, a: Tensor, g: Tensor, expert: Tensor, experts: int, *, flipped: bool = False) -> None:
        self.a = a
        self.g = g
        self.expert = expert
        self.samples = a.shape[0]
        self.flipped = flipped
        sizes = (a.shape[2], g.shape[2]) if flipped else (g.shape[2], a.shape[2])
        self.shape = torch.Size((experts, *sizes))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.a, self.g, self.expert

    def squared_norms(self) -> Tensor:
        """``‖G[b]‖² = sum_{t,s} (a_t·a_s)(g_t·g_s)[e_t = e_s]``: the Gram identity within each expert."""
        a, g = wide(self.a), wide(self.g)
        products = torch.bmm(a, a.transpose(1, 2)).mul_(torch.bmm(g, g.transpose(1, 2)))
        lengths = torch.diagonal(products, dim1=1, dim2=2).double().clamp(min=0).sqrt().sum(1)
        products.masked_fill_(self.expert[:, :, None] != self.expert[:, None, :], 0)
        squares = products.sum((1, 2), dtype=torch.float64)
        doubtful = untrusted(squares, lengths.square(), (sample_squares(a), sample_squares(g)), a.dtype)
        squares = cautious(squares, sizes(products), a.dtype)
        if any_of(doubtful):
            squares[doubtful] = sample_squares(self._part(doubtful).dense())
        return squares

    def _part(self, chosen: Tensor) -> Routed:
        a, g = self.a[chosen].double(), self.g[chosen].double()
        return Routed(a, g, self.expert[chosen], self.shape[0], flipped=self.flipped)

    def excess(self, factors: Tensor, limit: float) -> Tensor:
        lengths = (sample_squares(self.a) * sample_squares(self.g)).sqrt()
        return excessive(lengths, factors, limit)

    def weighted_sum(self, factors: Tensor, limit: float | None) -> Tensor:
        if limit is None:
            return self._sum(factors)
        apart = self.excess(factors, limit)
        total = self._sum(factors.masked_fill(apart, 0))
        if any_of(apart):
            total += torch.tensordot(factors[apart].double(), self._part(apart).dense(), 1).to(total.dtype)
        return total

    def _sum(self, factors: Tensor) -> Tensor:
        """One product for each expert over its rows of all samples."""
        a, g = wide(self.a).flatten(0, 1), wide(self.g)
        g = (g * factors.to(g.dtype)[:, None, None]).flatten(0, 1)
        expert = self.expert.flatten()
        total = a.new_zeros(self.shape)
        for e in expert.unique().tolist():
            rows = (expert == e).nonzero().flatten()
            pair = (a[rows], g[rows]) if self.flipped else (g[rows], a[rows])
            torch.mm(pair[0].t(), pair[1], out=total[e])
        return total

    def dense(self) -> Tensor:
        a, g = wide(self.a), wide(self.g)
        chosen = F.one_hot(self.expert, self.shape[0]).to(a.dtype)
        equation = "btd,btp,bte->bedp" if self.flipped else "btp,btd,bte->bepd"
        return torch.einsum(equation, *((a, g) if self.flipped else (g, a)), chosen)

    def without(self, dropped: Tensor) -> Use:
        a, g = zero_samples(self.a, dropped), zero_samples(self.g, dropped)
        return Routed(a, g, self.expert, self.shape[0], flipped=self.flipped)

    def transposed(self) -> Use:
        return Routed(self.a, self.g, self.expert, self.shape[0], flipped=not self.flipped)

    def grouped(self, units: Units) -> Use:
        a, g, expert = units.pack(self.a), units.pack(self.g), units.pack(self.expert)
        return Routed(a, g, expert, self.shape[0], flipped=self.flipped)

    def reshaped(self, shape: torch.Size) -> Use:
        return Dense(self.dense()).reshaped(shape)

    def placed(self, first: int, rows: int) -> Use:
        return Routed(self.a, self.g, self.expert + first, rows, flipped=self.flipped)
