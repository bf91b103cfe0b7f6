"""Where the samples of a batch sit in a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """The sample to which each row of a tensor belongs.

    Position ``i`` of dimension ``dim`` belongs to sample ``(i // inner) % samples``, so that the dimension has
    the size ``outer · samples · inner``. Examples with B samples and T positions: ``(B, T, d)`` is
    ``Layout(B, 0)``; ``(T, B, d)`` is ``Layout(B, 1)``; ``(B·T, d)``, batch-major, is ``Layout(B, 0, inner=T)``;
    two views of the batch concatenated, ``(2B, d)``, are ``Layout(B, 0, outer=2)``. Sizes alone cannot tell
    these apart when B = T, which is why the layout is followed from call to call.
    """

    samples: int
    dim: int
    outer: int = 1
    inner: int = 1

    @property
    def rows(self) -> int:
        """The size of the batch dimension."""
        return self.outer * self.samples * self.inner

    def fits(self, shape: torch.Size) -> bool:
        return 0 <= self.dim < len(shape) and shape[self.dim] == self.rows

    def at(self, dim: int) -> Layout:
        """The same rows in another dimension."""
        return self if dim == self.dim else Layout(self.samples, dim, self.outer, self.inner)

    def split(self, values: Tensor) -> Tensor:
        """Bring the samples to the front: ``(B, ...)`` with all else, in order, behind; ``outer`` and ``inner`` apart.

        Returns:
            A tensor of shape ``(B, outer?, ..., inner?, ...)``, without the factors that are 1.
        """
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
            Shape ``(B, T, *values.shape[-features:])``.
        """
        tail = values.shape[values.dim() - features :]
        return self.split(values).reshape(self.samples, -1, *tail)

    def reshaped(self, before: torch.Size, after: torch.Size) -> Layout | None:
        """Follow a row-major reshape from shape ``before`` to ``after``; None if samples are torn apart."""
        behind = self.inner * prod(before[self.dim + 1 :])
        suffix = prod(after)
        for dim, size in enumerate(after):
            rest = suffix // size if size else 0
            if rest and behind % rest == 0 and suffix % (behind * self.samples) == 0 and rest <= behind:
                return Layout(self.samples, dim, suffix // (behind * self.samples), behind // rest)
            suffix = rest
        return None
