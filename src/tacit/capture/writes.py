"""What becomes of a tensor that the batch is written into, or that is written over where the batch says."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tacit.capture.families import MixedRowsError
from tacit.capture.follow import moves_rows
from tacit.capture.indexing import follow_index
from tacit.capture.marks import Mark, mark_of, set_mark, tensors_in
from tacit.uses import Layout


def mark_written(func: Any, target: Tensor, marked: list[Tensor], args: tuple[Any, ...]) -> None:
    """Mark a constant into which the batch was written, where its rows can be told."""
    known = [mark.layout for value in marked if (mark := mark_of(value)) is not None and mark.layout is not None]
    found: list[Layout] = []
    for layout, value in zip(known, marked, strict=False):
        places = [layout.at(dim) for dim in range(target.dim()) if layout.at(dim).fits(target.shape)]
        if func is Tensor.__setitem__:
            found += [place for place in places if _lands_on(target, place, args, layout, value)]
        elif not moves_rows(func):
            found += [place for place in places if place.dim - layout.dim == target.dim() - value.dim()]
    alone = len(known) == len(marked) and len(set(found)) == 1
    set_mark(target, Mark(found[0]) if alone else Mark(None, lost="writing the batch into a constant"))


def check_written(target: Tensor, args: tuple[Any, ...]) -> None:
    """Forget where the rows of a batch tensor are if rows of other samples were written into them."""
    mark, written = mark_of(target), mark_of(args[2])
    if mark is None or mark.layout is None:
        return
    if written is None:
        chosen = any(mark_of(value) is not None for value in tensors_in(args[1]))
        if chosen and not _is_own_choice(target, mark.layout, args[1]):
            set_mark(target, Mark(None, lost="__setitem__", mixed=True))
        return
    if written.layout is None or not _lands_on(target, mark.layout, args, written.layout, args[2]):
        set_mark(target, Mark(None, lost="__setitem__", mixed=written.layout is not None))


def _is_own_choice(target: Tensor, layout: Layout, index: Any) -> bool:
    """Whether each sample decides by itself which of its numbers a constant is written over."""
    try:
        region = target.detach()[index]
        return region.numel() == 0 or follow_index(None, target, layout, (target, index), {}, region) is not None
    except MixedRowsError:
        return False


def _lands_on(target: Tensor, place: Layout, args: tuple[Any, ...], layout: Layout, value: Tensor) -> bool:
    """Whether the part of ``target`` that an index picks has the batch where ``value`` has it."""
    region = target.detach()[args[1]]
    try:
        seen = follow_index(None, target, place, (target, args[1]), {}, region)
    except MixedRowsError:
        return False
    return seen is not None and seen == layout.at(layout.dim + region.dim() - value.dim())
