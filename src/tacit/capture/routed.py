"""What calls do to rows whose samples are named one by one: routed to experts, or packed by time step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tacit.capture.families import along as along_dims
from tacit.capture.families import dim_argument, generic
from tacit.capture.marks import mark_of
from tacit.uses import Layout


def index_add(_f: Any, _source: Tensor, _layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """Rows added to others, or copied over them: they must be of the same samples, and go where those say."""
    dim = dim_argument(args, kwargs, 1) % out.dim()
    index, added = dim_argument(args, kwargs, 2, None, ("index",)), dim_argument(args, kwargs, 3, None, ("source",))
    onto, what, where = mark_of(args[0]), mark_of(added), mark_of(index)
    if onto is None or onto.layout is None or what is None or what.layout is None:
        return None
    if onto.layout.dim != dim:
        return onto.layout if where is None and what.layout == onto.layout else None
    own = what.layout.owner is None if where is None else where.layout is not None
    landed = onto.layout.picked(index.detach())
    if where is not None and where.layout is not None and where.layout.at(dim) != landed:
        return None
    return onto.layout if own and what.layout == landed else None


def places(function: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """``nonzero()``, or ``where(mask)``: each place is its own sample's doing."""
    if len(args) + len(kwargs.keys() - {"as_tuple"}) > 1 and getattr(function, "__name__", "") == "where":
        return generic(function, source, layout, args, kwargs, out)
    if source.dim() == 0:
        return None
    return Layout.owned(layout.samples, 0, layout.owners(source.device)[source.detach().nonzero()[:, layout.dim]])


def ordered(function: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """``sort`` and ``argsort`` of a vector: all rows, in another order. What they were sorted by groups them."""
    if source.dim() != 1:
        return along_dims(1, -1)(function, source, layout, args, kwargs, out)
    options = {key: value for key, value in kwargs.items() if key != "input"}
    values, order = torch.sort(source.detach(), *args[1:], **options)
    if len(values) and not (torch.equal(out, order) or torch.equal(out, values)):
        return None
    mark = mark_of(source)
    key = not source.is_floating_point() and (mark is None or not mark.pointer)
    return Layout.owned(layout.samples, 0, layout.owners(order.device)[order], values if key else None)


_OF_ROWS = frozenset("where sort nonzero argwhere argsort".split())


def points(function: Any, source: Tensor, args: Any, kwargs: Any, out: Tensor) -> bool:
    """Whether a call returns numbers of rows: of what it has ordered, or of where something is true."""
    name = getattr(function, "__name__", "")
    if name not in _OF_ROWS:
        return False
    if name == "where":
        return len(args) + len(kwargs) == 1
    if name == "sort":
        options = {key: value for key, value in kwargs.items() if key != "input"}
        whole = source.dim() == 1 and out.dtype == torch.int64
        return whole and torch.equal(out, torch.sort(source.detach(), *args[1:], **options).indices)
    return name != "argsort" or source.dim() == 1


def packed(_f: Any, source: Tensor, layout: Layout, args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    """``pack_padded_sequence``: for each time step the sequences, longest first, that are not over."""
    _, lengths, batch_first = args
    if out.dim() == 1 or layout.dim != (0 if batch_first else 1):
        return None  # the batch sizes, or time taken for the batch
    owner, mark = layout.owners(lengths.device), mark_of(lengths)
    own = mark is None or (mark.layout is not None and torch.equal(mark.layout.owners(lengths.device), owner))
    if not own and layout.samples > 1:
        return None
    steps = [owner[lengths > t] for t in range(int(lengths.max()))]
    return Layout.owned(layout.samples, 0, torch.cat(steps).to(source.device))


def unpacked(_f: Any, source: Tensor, layout: Layout, args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    """``pad_packed_sequence``, its inverse."""
    _, sizes, batch_first, *_ = args
    if out.dim() == 1 or source is not args[0]:
        return None
    owners, counts = layout.owners(), sizes.tolist()
    order = owners[: counts[0]]
    expected = torch.cat([order[:count] for count in counts])
    return Layout.owned(layout.samples, 0 if batch_first else 1, order) if torch.equal(expected, owners) else None
