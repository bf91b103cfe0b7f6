"""Sums of squares that are right: never in less than float32, and in blocks, so that errors do not pile up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tacit.uses.questions import any_of

BLOCK = 1024
"""Numbers summed in the working precision before float64 takes over.

A flat float32 norm over 1.3e7 numbers was measured 6e-4 too low; in blocks of about 1,000 the error is 1e-7.
"""

FEW = 2**15
"""So few numbers are summed in float64 at once: the copy costs less than blocks and doubts do."""

SMALLEST = 1e-30
"""Squared norms below this, or above its inverse, are not trusted in float32."""

EXCESS = 300.0
"""Terms this many times longer than the bound on their sum are summed apart; below, their error is under 1e-4 of it."""

SUSPICION = 1e3
"""A squared norm below this many rounding errors of its largest term is computed again without cancellation."""

CAUTION = 3e5
"""A squared norm below this many is taken as larger, by what rounding may have taken off; above, that is under 1e-4."""

MARGIN = 64.0
"""How many rounding errors that is, of all terms without their signs. The worst seen was 26: of rows that nearly are
one constant vector, whose products all round the same way; of random ones it was 2.4."""

NARROW = frozenset([torch.bfloat16, torch.float16])
"""Types whose rounding shows: what counts is computed in float32 instead."""


def wide(values: Tensor) -> Tensor:
    """Return ``values`` in float32 at least: in bfloat16, Gram matrices have given a norm of 0."""
    return values.float() if values.dtype in NARROW else values


def wide_dtype(values: Tensor) -> torch.dtype:
    """The type that :func:`wide` gives ``values``."""
    return torch.float32 if values.dtype in NARROW else values.dtype


def sample_squares(values: Tensor) -> Tensor:
    """Return the sum of squares of each ``values[b]``: shape ``(B,)``, float64.

    Samples whose squares leave float32's range (numbers around 1e-23 or 1e20) are summed again in float64: a norm that
    underflows to 0 next to a huge other factor would leave a sample unclipped.
    """
    rows = wide(values).reshape(values.shape[0], -1)
    squares: Tensor
    if rows.numel() <= FEW:
        squares = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
        return squares
    squares = block_squares(rows)
    if rows.dtype == torch.float32:
        doubtful = out_of_range(squares)
        if any_of(doubtful):
            squares[doubtful] = block_squares(rows[doubtful].double())
    return squares


def out_of_range(squares: Tensor) -> Tensor:
    """Tell which sums of squares were computed from numbers that float32 may not square."""
    return (squares < SMALLEST) | (squares > 1 / SMALLEST)


def block_squares(rows: Tensor) -> Tensor:
    """The sum of squares of each row: ``(B,)``, float64, each block's summed in the rows' own type."""
    squares: Tensor
    count = rows.shape[1]
    full = count // BLOCK * BLOCK
    if count <= BLOCK:
        squares = torch.linalg.vector_norm(rows, dim=1).double().square()
        return squares
    squares = torch.linalg.vector_norm(rows[:, :full].unflatten(1, (-1, BLOCK)), dim=2).double().square().sum(1)
    if full < count:
        squares += torch.linalg.vector_norm(rows[:, full:], dim=1).double().square()
    return squares


def excessive(lengths: Tensor, factors: Tensor, limit: float) -> Tensor:
    """Tell which samples to sum apart, in float64, because their terms cancel.

    The terms of one sample can be far larger than their sum, which alone is bounded. In a sum over all samples their
    rounding errors would then drown the others.

    Args:
        lengths: ``(B,)``: a bound on the sum of the lengths of a sample's terms.
        factors: ``(B,)``: what the sample is multiplied by.
        limit: the most that one sample's clipped gradient measures.
    """
    return (lengths * factors > EXCESS * limit) & torch.isfinite(lengths) & (factors > 0)


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


def untrusted(squares: Tensor, bound: Tensor, parts: Sequence[Tensor], precision: torch.dtype) -> Tensor:
    """Tell which squared norms of products of two factors are to be computed again, in float64: a mask ``(B,)``.

    They may be mostly rounding error, see :func:`cancelled`, or are of numbers that float32 may not square.

    Args:
        squares: computed squared norms, ``(B,)``.
        bound: squared norms if nothing cancelled, ``(B,)``.
        parts: squared norms of the factors, ``(B,)`` each.
        precision: the type in which the terms were computed.
    """
    found = cancelled(squares, bound, precision)
    if precision == torch.float32:
        for each in (*parts, squares):
            found |= out_of_range(each)
    return found


def cautious(squares: Tensor, terms: Tensor, precision: torch.dtype) -> Tensor:
    """Return squared norms that rounding has not made smaller than they are, by more than noise pays for.

    A norm that is too small lets its sample pass the clipping bound; one that is too large clips it more than need be:
    by 4e-2 of itself at most, where it is just not computed again.

    Args:
        squares: computed squared norms, ``(B,)``.
        terms: the sum of their terms' sizes, without signs, ``(B,)``.
        precision: the type in which the terms were computed.
    """
    error = torch.finfo(precision).eps * terms
    return torch.where(squares < CAUTION * error, squares + MARGIN * error, squares)


def sizes(products: Tensor) -> Tensor:
    """The sum of the absolute values of each sample's matrix: ``(B,)``, float64."""
    total: Tensor = torch.linalg.vector_norm(products, ord=1, dim=(1, 2)).double()
    return total
