"""Sums of squares that are right: never in less than float32, and in blocks, so that errors do not pile up."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024
"""Numbers summed in the working precision before float64 takes over.

A flat float32 norm over 1.3e7 numbers was measured 6e-4 too low; in blocks of about 1,000 the error is 1e-7.
"""

SUSPICION = 1e3
"""A squared norm below this many rounding errors of its largest term is computed again without cancellation."""


def wide(values: Tensor) -> Tensor:
    """Return ``values`` in float32 at least: in bfloat16, Gram matrices have given a norm of 0."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def sample_squares(values: Tensor) -> Tensor:
    """Return the sum of squares of each ``values[b]``: shape ``(B,)``, float64."""
    rows = wide(values).reshape(values.shape[0], -1)
    full = rows.shape[1] // BLOCK * BLOCK
    squares: Tensor = torch.linalg.vector_norm(rows[:, full:], dim=1).double().square()
    if full:
        blocks = rows[:, :full].unflatten(1, (-1, BLOCK))
        squares = squares + torch.linalg.vector_norm(blocks, dim=2).double().square().sum(1)
    return squares


def cancelled(squares: Tensor, bound: Tensor, precision: torch.dtype) -> Tensor:
    """Tell for which samples ``squares`` may be mostly rounding error.

    Args:
        squares: computed squared norms, ``(B,)``; a difference of terms that can cancel.
        bound: squared norms if nothing cancelled, ``(B,)``; rounding errors scale with it.
        precision: the type in which the terms were computed.

    Returns:
        A boolean mask ``(B,)``. Non-finite samples are left alone: they are dropped later.
    """
    epsilon = torch.finfo(precision).eps
    return (squares < SUSPICION * epsilon * bound) & torch.isfinite(bound)
