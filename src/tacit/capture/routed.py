"""What calls do to rows whose samples are named one by one: routed to experts, or packed by time step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tacit.capture.families import dim_argument
from tacit.capture.marks import mark_of
from tacit.uses import Layout


def index_add(_f: Any, _source: Tensor, _layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """Rows added to others, or copied over them: they must be of the same samples."""
    dim = dim_argument(args, kwargs, 1) % out.dim()
    index, added = dim_argument(args, kwargs, 2, None, ("index",)), dim_argument(args, kwargs, 3, None, ("source",))
    onto, what = mark_of(args[0]), mark_of(added)
    if onto is None or onto.layout is None or (what is not None and what.layout is None):
        return None
    if onto.layout.dim != dim:
        return onto.layout if what is None or what.layout == onto.layout else None
    if what is None or what.layout is None:
        return None
    picked = onto.layout.picked(index.detach())
    return onto.layout if what.layout == picked else None


def packed(_f: Any, source: Tensor, layout: Layout, args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    """``pack_padded_sequence``: for each time step the sequences, longest first, that are not over."""
    _, lengths, batch_first = args
    if out.dim() == 1 or layout.dim != (0 if batch_first else 1):
        return None  # the batch sizes, or time taken for the batch
    owner = layout.owners(lengths.device)
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
