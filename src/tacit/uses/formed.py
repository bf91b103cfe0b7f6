"""Norms of whole gradients that are formed for them alone, and let go of."""

from __future__ import annotations

import torch
from torch import Tensor

from tacit.uses.numerics import block_squares, wide, wide_dtype

BLOCK = 2**20
"""Bytes of whole gradients that are formed at once, of one sample at least: they stay in the cache."""


def formed_at_once(samples: int, rows: int, columns: int, itemsize: int) -> int:
    """Of how many samples whole gradients are formed at once."""
    return max(1, min(samples, BLOCK // max(1, rows * columns * itemsize)))


def product_squares(left: Tensor, right: Tensor) -> Tensor:
    """The sum of squares of each matrix ``left[b]ᵀ right[b]``, a few at a time.

    Args:
        left: ``(B, T, p)``.
        right: ``(B, T, d)``.

    Returns:
        ``(B,)``, float64, from products in float32 at least. Where these leave float32's range, so do the sums.
    """
    (samples, _, rows), columns, dtype = left.shape, right.shape[2], wide_dtype(left)
    some = formed_at_once(samples, rows, columns, dtype.itemsize)
    space = torch.empty((some, rows, columns), dtype=dtype, device=left.device)
    squares = torch.empty(samples, dtype=torch.float64, device=left.device)
    for start in range(0, samples, some):
        part = slice(start, min(start + some, samples))
        products = space[: part.stop - start]
        torch.bmm(wide(left[part]).transpose(1, 2), wide(right[part]), out=products)
        squares[part] = block_squares(products.flatten(1))
    return squares
