"""The use of a matrix that multiplies activations: ``G[b] = sum_t g[b, t] ⊗ a[b, t]``."""

from __future__ import annotations

import torch
from torch import Tensor

from tacit.uses.base import Use, zero_samples
from tacit.uses.numerics import cancelled, sample_squares, wide


class Outer(Use):
    """Inputs ``a`` (B, T, d) and output gradients ``g`` (B, T, p) of a matrix product.

    ``G[b]`` is the p × d matrix ``g[b]ᵀ a[b]`` (its transpose if ``flipped``), viewed as ``shape``.
    """

    def __init__(self, a: Tensor, g: Tensor, shape: torch.Size, *, flipped: bool = False) -> None:
        self.a = a
        self.g = g
        self.samples = a.shape[0]
        self.shape = shape
        self.flipped = flipped

    def squared_norms(self) -> Tensor:
        """Gram identity: ``‖G[b]‖² = sum_{t,s} (a_t·a_s)(g_t·g_s)`` (Goodfellow 2015, arXiv:1510.01799)."""
        if self.a.shape[1] == 1:
            return sample_squares(self.a) * sample_squares(self.g)
        a, g = wide(self.a), wide(self.g)
        grams = torch.bmm(a, a.transpose(1, 2))
        grad_grams = torch.bmm(g, g.transpose(1, 2))
        lengths = (_diagonals(grams) * _diagonals(grad_grams)).clamp(min=0).sqrt()
        squares = grams.mul_(grad_grams).sum((1, 2), dtype=torch.float64)
        doubtful = cancelled(squares, lengths.sum(1).square(), a.dtype)
        if bool(doubtful.any()):
            squares[doubtful] = sample_squares(_products(a[doubtful].double(), g[doubtful].double()))
        return squares

    def weighted_sum(self, factors: Tensor) -> Tensor:
        a, g = self.a.flatten(0, 1), self.g
        weights = factors.to(torch.promote_types(g.dtype, torch.float32))[:, None, None]
        # The narrower side is scaled; in the working type, so that the product stays one fast GEMM.
        if a.shape[-1] < g.shape[-1]:
            a = (self.a * weights).to(g.dtype).flatten(0, 1)
        else:
            g = (g * weights).to(a.dtype)
        g = g.flatten(0, 1)
        total = a.t() @ g if self.flipped else g.t() @ a
        return total.view(self.shape)

    def dense(self) -> Tensor:
        pair = (self.g, self.a) if self.flipped else (self.a, self.g)
        return _products(*pair).view(self.samples, *self.shape)

    def without(self, dropped: Tensor) -> Use:
        a, g = zero_samples(self.a, dropped), zero_samples(self.g, dropped)
        return Outer(a, g, self.shape, flipped=self.flipped)

    def transposed(self) -> Use:
        return Outer(self.a, self.g, torch.Size(reversed(self.shape)), flipped=not self.flipped)


def _products(a: Tensor, g: Tensor) -> Tensor:
    return torch.bmm(g.transpose(1, 2), a)


def _diagonals(grams: Tensor) -> Tensor:
    return torch.diagonal(grams, dim1=1, dim2=2).double()
