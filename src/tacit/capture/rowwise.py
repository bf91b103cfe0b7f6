"""Followers of calls that treat each row, each matrix of a stack, or each bag of ids by itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tacit.capture.families import Follower, first_operand
from tacit.uses import Layout


def within(dims: int) -> Follower:
    """Calls that work within the last ``dims`` dimensions: on vectors, or on matrices (inverses, factorizations)."""

    def follower(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
        return layout if layout.dim < source.dim() - dims and layout.fits(out.shape) else None

    return follower


def cells(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    """One step of a recurrent layer over inputs and states (B, d)."""
    return layout if layout.dim == 0 and source.dim() == 2 and layout.fits(out.shape) else None


def bags(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """``F.embedding_bag`` of ids (B, T) and weights for them; with offsets the ids of all bags lie in one row."""
    by_bag = source.shape == first_operand(args, kwargs).shape
    return cells(f, source, layout, args, kwargs, out) if by_bag else None
