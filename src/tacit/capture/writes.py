"""What becomes of a tensor that the batch is written into, or that is written over where the batch says."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tacit.capture.families import MixedRowsError
from tacit.capture.follow import moves_rows
from tacit.capture.indexing import follow_index
from tacit.capture.marks import Mark, mark_of, set_mark, tensors_in_index
from tacit.errors import LayoutError
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


def keeps_aliases(func: Any, target: Tensor, before: Mark | None, marked: list[Tensor]) -> bool:
    """Whether what is known of the tensors that share memory with ``target`` still holds, now that it is written into.

    What they are known for was noted when they were made. A constant that a view is of is marked here.
    """
    after = mark_of(target)
    if before is not None and before.layout is not None:
        return after is not None and after.layout is not None
    base = target._base
    if base is None:
        return True
    known = mark_of(base)
    if before is None:
        place = _place_in(base, target, after)
        if known is None:
            set_mark(base, Mark(place, lost="" if place else "writing the batch into a view of a constant"))
        return known is None or known.layout is None or place == known.layout
    # A view of some of the rows, say: its own numbers may change there, and those of others may not come.
    own = all(value is target for value in marked) and (func is Tensor.__setitem__ or not moves_rows(func))
    return own or known is None or known.layout is None


def moved_error(func: Any, module: str) -> LayoutError:
    """The error of samples that are written over those of others, which other tensors in this memory are known for."""
    return LayoutError(
        f"`{func.__name__}` in {module} writes numbers of the batch over those of other samples, in memory that other "
        "tensors may share: their rows then are no samples any more, and clipping bounds nothing. Compute a new tensor "
        "instead of writing in place."
    )


def _place_in(base: Tensor, view: Tensor, mark: Mark | None) -> Layout | None:
    """Where the batch is in the tensor that a view is of, if the view has all its rows."""
    if mark is None or mark.layout is None:
        return None
    layout = mark.layout
    if layout.samples == 1 and base.dim() > 0:
        return Layout(1, 0, inner=base.shape[0])
    kind = view.shape[layout.dim], view.stride(layout.dim)
    found = [dim for dim in range(base.dim()) if (base.shape[dim], base.stride(dim)) == kind]
    return layout.at(found[0]) if len(found) == 1 else None


def check_written(target: Tensor, args: tuple[Any, ...]) -> None:
    """Forget where the rows of a batch tensor are if rows of other samples were written into them."""
    mark, written = mark_of(target), mark_of(args[2])
    if mark is None or mark.layout is None:
        return
    if written is None:
        chosen = any(map(mark_of, tensors_in_index(args[1])))
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
