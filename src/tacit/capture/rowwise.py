"""Followers of calls that treat each row, each matrix of a stack, or each bag of ids by itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tacit.capture.families import Follower, first_operand
from tacit.capture.marks import tensors_in
from tacit.uses import Layout


def within(dims: int) -> Follower:
    """Calls that work within the last ``dims`` dimensions: on vectors, or on matrices (inverses, factorizations)."""

    def follower(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
        return layout if layout.dim < source.dim() - dims and layout.fits(out.shape) else None

    return follower


def cells(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """One step of a recurrent layer over inputs and states (B, d); its weights must not come from the batch."""
    read = tensors_in((first_operand(args, kwargs), kwargs["hx"] if "hx" in kwargs else args[1]))
    return layout if any(source is value for value in read) and _is_rows(source, layout, out) else None


def bags(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """``F.embedding_bag`` of ids (B, T) and weights for them; with offsets the ids of all bags lie in one row."""
    ids, table = first_operand(args, kwargs), kwargs["weight"] if "weight" in kwargs else args[1]
    by_bag = source is not table and source.shape == ids.shape and not ids.is_floating_point()
    return layout if by_bag and _is_rows(source, layout, out) else None


def _is_rows(source: Tensor, layout: Layout, out: Tensor) -> bool:
    return layout.dim == 0 and source.dim() == 2 and layout.fits(out.shape)
