"""Followers of calls that treat each row, each matrix of a stack, or each bag of ids by itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tacit.capture.families import first_operand
from tacit.uses import Layout


def matrices(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    """Inverses and factorizations of the last two dimensions."""
    return layout if layout.dim < source.dim() - 2 and layout.fits(out.shape) else None


def vectors(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    """Calls that work on the last dimension."""
    return layout if layout.dim < source.dim() - 1 and layout.fits(out.shape) else None


def cells(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    """One step of a recurrent layer over inputs and states (B, d)."""
    return layout if layout.dim == 0 and source.dim() == 2 and layout.fits(out.shape) else None


def bags(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """``F.embedding_bag`` of ids (B, T) and weights for them; with offsets the ids of all bags lie in one row."""
    ids = first_operand(args, kwargs)
    return (
        layout
        if layout.dim == 0 and source.dim() == 2 and source.shape == ids.shape and layout.fits(out.shape)
        else None
    )
