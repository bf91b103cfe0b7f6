"""The use of a matrix that multiplies activations: ``G[b] = sum_t g[b, t] ⊗ a[b, t]``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.uses.base import Use, zero_samples
from tacit.uses.cost import Asked
from tacit.uses.dense import Dense
from tacit.uses.formed import product_squares
from tacit.uses.numerics import cautious, excessive, sample_squares, sizes, untrusted, wide, wide_dtype
from tacit.uses.questions import any_of
from tacit.uses.units import Units
from tacit.uses.workspace import Workspace


class Gram:
    """The Gram matrices ``g gᵀ`` (B, T, T) of output gradients, formed once for all uses that read the same ones."""

    def __init__(self, g: Tensor) -> None:
        self._g = g
        self._grams: Tensor | None = None

    def matrices(self) -> Tensor:
        if self._grams is None:
            g = wide(self._g)
            self._grams = torch.bmm(g, g.transpose(1, 2))
        return self._grams


class Outer(Use):
    """Inputs ``a`` (B, T, d) and output gradients ``g`` (B, T, p) of a matrix product.

    ``G[b]`` is the p × d matrix ``g[b]ᵀ a[b]`` (its transpose if ``flipped``), viewed as ``shape``. If ``formed``, G is
    formed for the norm, and let go of, instead of Gram matrices.
    """

    def __init__(
        self,
        a: Tensor,
        g: Tensor,
        shape: torch.Size,
        *,
        flipped: bool = False,
        gram: Gram | None = None,
        formed: bool = False,
    ) -> None:
        self._gram = gram
        self._lengths: Tensor | None = None
        self._squares: Tensor | None = None
        self.formed = formed
        self.a = a
        self.g = g
        self.samples = a.shape[0]
        self.shape = shape
        self.flipped = flipped

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.a, self.g

    def forms(self, asked: Asked, workspace: Workspace | None = None) -> dict[str, Callable[[], Use]]:
        """How what is asked may be computed, by name; each call makes a new use, whole ones in the workspace."""
        forms: dict[str, Callable[[], Use]] = {"gram": partial(self._again, formed=False)}
        if asked is not Asked.SUM:
            forms["stored"] = (
                partial(self.stored, workspace) if asked is Asked.BOTH else partial(self._again, formed=True)
            )
        return forms

    def _again(self, *, formed: bool) -> Outer:
        return Outer(self.a, self.g, self.shape, flipped=self.flipped, gram=self._gram, formed=formed)

    def squared_norms(self) -> Tensor:
        """Computed once. Not to be changed."""
        if self._squares is None:
            if self.a.shape[1] == 1:
                a_squares, g_squares = self.part_squares()
                self._squares = a_squares * g_squares
            else:
                self._squares = self._formed_norms() if self.formed else self._gram_norms()
        return self._squares

    def lengths(self) -> Tensor:
        """A bound on ``sum_t ‖a[b, t]‖·‖g[b, t]‖``, for each sample: ``(B,)``, float64."""
        if self._lengths is None:
            a_squares, g_squares = self.part_squares()
            self._lengths = (a_squares * g_squares).sqrt()
        return self._lengths

    def _formed_norms(self) -> Tensor:
        """Those of whole gradients; again in float64 where they are mostly rounding error of what cancelled."""
        squares = product_squares(self.g, self.a)
        doubtful = untrusted(squares, self.lengths().square(), self.part_squares(), wide_dtype(self.a))
        return self._in_double(squares, doubtful) if any_of(doubtful) else squares

    def _gram_norms(self) -> Tensor:
        """Gram identity: ``‖G[b]‖² = sum_{t,s} (a_t·a_s)(g_t·g_s)`` (Goodfellow 2015, arXiv:1510.01799)."""
        a = wide(self.a)
        grams = torch.bmm(a, a.transpose(1, 2))
        grad_grams = (self._gram or Gram(self.g)).matrices()
        a_squares, g_squares = _diagonals(grams), _diagonals(grad_grams)
        lengths = (a_squares * g_squares).clamp(min=0).sqrt().sum(1)
        squares = grams.mul_(grad_grams).sum((1, 2), dtype=torch.float64)
        doubtful = untrusted(squares, lengths.square(), (a_squares.sum(1), g_squares.sum(1)), a.dtype)
        squares = cautious(squares, sizes(grams), a.dtype)
        if any_of(doubtful):
            return self._in_double(squares, doubtful)
        self._lengths = lengths  # else they may be mostly rounding error, too
        return squares

    def _in_double(self, squares: Tensor, doubtful: Tensor) -> Tensor:
        squares[doubtful] = sample_squares(_products(self.a[doubtful].double(), self.g[doubtful].double()))
        return squares

    def forget(self) -> None:
        super().forget()
        self._squares = self._lengths = None

    def excess(self, factors: Tensor, limit: float) -> Tensor | None:
        return excessive(self.lengths(), factors, limit) if self.a.shape[1] > 1 else None

    def weighted_sum(self, factors: Tensor, limit: float | None) -> Tensor:
        apart = None if limit is None else self.excess(factors, limit)
        if apart is not None and any_of(apart):
            return self._sum(factors.masked_fill(apart, 0)) + self._sum_apart(factors, apart)
        return self._sum(factors)

    def _sum(self, factors: Tensor) -> Tensor:
        a, g = wide(self.a), wide(self.g)
        weights = factors.to(g.dtype)[:, None, None]
        # The narrower side is scaled; the product stays one fast GEMM.
        a, g = (a * weights, g) if a.shape[-1] < g.shape[-1] else (a, g * weights)
        a, g = a.flatten(0, 1), g.flatten(0, 1)
        total = a.t() @ g if self.flipped else g.t() @ a
        return total.view(self.shape)

    def _sum_apart(self, factors: Tensor, apart: Tensor) -> Tensor:
        chosen = Outer(self.a[apart].double(), self.g[apart].double(), self.shape, flipped=self.flipped)
        return chosen._sum(factors[apart]).to(wide(self.a).dtype)

    def dense(self) -> Tensor:
        a, g = wide(self.a), wide(self.g)
        pair = (g, a) if self.flipped else (a, g)
        return _products(*pair).view(self.samples, *self.shape)

    def stored(self, workspace: Workspace | None = None) -> Dense:
        """The same use, with ``G`` formed, in the workspace if there is one."""
        a, g = wide(self.a), wide(self.g)
        left, right = (a, g) if self.flipped else (g, a)
        left = left.transpose(1, 2)
        multiply = torch.mul if a.shape[1] == 1 else torch.bmm
        if workspace is None or a.device.type != "cpu":
            whole = multiply(left, right)
        else:
            size = self.samples, left.shape[1], right.shape[2]
            whole = workspace.filled(size, a.dtype, lambda out: multiply(left, right, out=out))
        return Dense(whole.view(self.samples, *self.shape))

    def without(self, dropped: Tensor) -> Use:
        a, g = zero_samples(self.a, dropped), zero_samples(self.g, dropped)
        return Outer(a, g, self.shape, flipped=self.flipped)

    def transposed(self) -> Use:
        if len(self.shape) != 2 or self.shape[0] != (self.a if self.flipped else self.g).shape[2]:
            return Dense(self.dense()).transposed()
        shape = torch.Size(reversed(self.shape))
        return Outer(self.a, self.g, shape, flipped=not self.flipped, formed=self.formed)

    def grouped(self, units: Units) -> Use:
        a, g = units.pack(self.a), units.pack(self.g)
        return Outer(a, g, self.shape, flipped=self.flipped, formed=self.formed)

    def reshaped(self, shape: torch.Size) -> Use:
        return Outer(self.a, self.g, shape, flipped=self.flipped, gram=self._gram, formed=self.formed)

    def placed(self, first: int, rows: int) -> Use:
        matrix = self.g.shape[2] if not self.flipped else self.a.shape[2]
        if self.shape[0] != matrix:  # its rows are not those of the matrix product
            return Dense(self.dense()).placed(first, rows)
        shape = torch.Size((rows, *self.shape[1:]))
        widths = (first, rows - first - self.shape[0])
        a, g = (F.pad(self.a, widths), self.g) if self.flipped else (self.a, F.pad(self.g, widths))
        return Outer(a, g, shape, flipped=self.flipped)


def _products(a: Tensor, g: Tensor) -> Tensor:
    return torch.bmm(g.transpose(1, 2), a)


def _diagonals(grams: Tensor) -> Tensor:
    return torch.diagonal(grams, dim1=1, dim2=2).double()
