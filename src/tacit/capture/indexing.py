"""Follow the batch dimension through indexing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tacit.capture.families import MixedRowsError
from tacit.capture.marks import mark_of, tensors_in_index
from tacit.capture.picking import check_choice, mask_rows, picked
from tacit.uses import Layout


def follow_index(_f: Any, source: Tensor, layout: Layout, args: Any, _kwargs: Any, _out: Tensor) -> Layout | None:
    """``x[index]`` with integers, slices, None, Ellipsis and index tensors."""
    if source is not args[0]:  # a constant table, read by ids of the batch
        return layout if source is args[1] and not _is_mask(source) else None
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    listed = (list, range)
    index = tuple(torch.tensor(list(i), device=source.device) if isinstance(i, listed) else i for i in index)
    if any(_is_mask(item) for item in index):
        return _masked(source, layout, index)
    return _indexed(source, layout, _without_ellipsis(index, source.dim()))


def _indexed(source: Tensor, layout: Layout, index: tuple[Any, ...]) -> Layout | None:
    position, dim, advanced = 0, 0, []
    found: Layout | None = None
    for item in index:
        if item is None:
            dim += 1
            continue
        at_batch = position == layout.dim
        position += 1
        if isinstance(item, Tensor) and item.dim() > 0:
            advanced.append((dim, item, at_batch))
            continue
        if isinstance(item, slice):
            for bound in tensors_in_index(item):
                check_choice(bound, layout, 0, real=source.is_floating_point())
            if at_batch:
                found = _sliced(layout, item, dim)
                if found is None:
                    return None
            dim += 1
        elif at_batch:
            return None  # one sample picked out
        elif isinstance(item, Tensor):
            check_choice(item, layout, 0, real=source.is_floating_point())
    if found is None and position <= layout.dim:
        found = layout.at(dim + layout.dim - position)
    return _place_advanced(found, layout, advanced, index)


def _place_advanced(
    found: Layout | None, layout: Layout, advanced: list[tuple[int, Tensor, bool]], index: tuple[Any, ...]
) -> Layout | None:
    if not advanced:
        return found
    places = [i for i, item in enumerate(index) if isinstance(item, Tensor) and item.dim() > 0]
    together = places == list(range(places[0], places[0] + len(places)))
    width = max(item.dim() for _, item, _ in advanced)
    start = advanced[0][0] if together else 0
    chosen = [item for _, item, at_batch in advanced if at_batch]
    if chosen:
        result = _all_samples(layout, chosen[0], start, width)
    elif found is None:
        return None
    else:
        result = found.at(found.dim + width) if not together or found.dim >= start else found
    for _, item, at_batch in advanced:
        if not at_batch:
            check_choice(item, result, start + width - item.dim(), real=True)
    return result


def _all_samples(layout: Layout, chosen: Tensor, start: int, width: int) -> Layout | None:
    """Rows picked by number keep their samples, in whatever order."""
    long = [dim for dim, size in enumerate(chosen.shape) if size != 1]
    if len(long) > 1:
        return None
    return picked(layout, chosen).at(start + width - chosen.dim() + (long[0] if long else 0))


def _masked(source: Tensor, layout: Layout, index: tuple[Any, ...]) -> Layout | None:
    """``x[mask]``: the rows of the leading dimensions where a mask is true, in order."""
    mask = index[0]
    whole = all(isinstance(item, slice) and item == slice(None) for item in index[1:])
    if not _is_mask(mask) or not whole:
        return None
    if layout.dim >= mask.dim():
        if mark_of(mask) is not None and layout.samples > 1:
            raise MixedRowsError
        return layout.at(layout.dim - mask.dim() + 1)
    if not source.numel():
        return None
    rows = mask_rows(mask, layout, source.shape)
    places = mask.detach().flatten().nonzero().flatten()
    return rows.picked(places) if mark_of(mask) is not None else picked(rows, places)


def _sliced(layout: Layout, item: slice, dim: int) -> Layout | None:
    if item.start in (None, 0) and item.stop is None and item.step in (None, 1):  # also where the size is a symbol
        return layout.at(dim)
    start, stop, step = item.indices(layout.rows)
    section = layout.section(start, stop) if step == 1 else None
    return None if section is None else section.at(dim)


def _is_mask(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8)


def _without_ellipsis(index: tuple[Any, ...], dims: int) -> tuple[Any, ...]:
    places = [i for i, item in enumerate(index) if item is Ellipsis]
    if not places:
        return index
    used = sum(item is not None and item is not Ellipsis for item in index)
    return (*index[: places[0]], *[slice(None)] * (dims - used), *index[places[0] + 1 :])


def follow_narrow(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """``narrow``, ``select`` and ``index_select`` along one dimension."""
    dim = (kwargs["dim"] if "dim" in kwargs else args[1]) % source.dim()
    if dim != layout.dim:
        if f.__name__ == "index_select":
            check_choice(kwargs["index"] if "index" in kwargs else args[2], None, dim, real=True)
        return layout.at(layout.dim - (dim < layout.dim)) if out.dim() < source.dim() else layout
    if f.__name__ == "index_select":
        return picked(layout, kwargs["index"] if "index" in kwargs else args[2])
    if f.__name__ != "narrow":
        return None
    start = kwargs["start"] if "start" in kwargs else args[2]
    start = int(start) if isinstance(start, Tensor) else start
    start = start + layout.rows if start < 0 else start
    return layout.section(start, start + out.shape[dim])
