"""Which rows a call picks, and whose doing that is.

A row that counts because of what *other* samples are (the best of the batch, the first that fit, those above the mean)
makes the sum of clipped gradients move by more than one sample's bound when a record comes or goes, even if every row
is known by its sample. So a pick must be one of three: each row equally often; decided for each row by its own sample;
or the same places of every sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tacit.capture.families import MixedRowsError
from tacit.capture.marks import Mark, mark_of
from tacit.uses import Layout


def picked(layout: Layout, index: Tensor) -> Layout:
    """Return the layout of the rows ``index`` (any shape, read flat).

    Raises:
        MixedRowsError: other samples have a say in which rows are picked.
    """
    places = index.detach().flatten() % max(layout.rows, 1)
    mark = mark_of(index)
    group = None if mark is None or mark.layout is None else mark.layout.group
    if layout.samples == 1:
        return layout.picked(places)
    if _each_equally_often(layout, places):
        return layout.picked(places, group)
    if mark is None:
        if not _same_places_of_each(layout, places):
            raise MixedRowsError
        return layout.picked(places)
    owner = layout.owners(places.device)[places]
    if mark.layout is None or not _owned_alike(mark, index, owner):
        raise MixedRowsError
    return layout.picked(places, group)


def _owned_alike(mark: Mark, index: Tensor, owner: Tensor) -> bool:
    """Whether each number was computed from the sample whose row it picks, and from no other."""
    assert mark.layout is not None
    if not mark.layout.fits(index.shape) or mark.layout.rows != index.numel():
        return False
    return torch.equal(mark.layout.owners(owner.device), owner)


def _each_equally_often(layout: Layout, places: Tensor) -> bool:
    counts = torch.bincount(places, minlength=layout.rows)
    return len(places) > 0 and bool((counts == counts[0]).all())


def _same_places_of_each(layout: Layout, places: Tensor) -> bool:
    """A constant pick: of a regular layout, the same places of every sample, in the same order."""
    if layout.owner is not None or len(places) % layout.samples:
        return False
    sample = places // layout.inner % layout.samples
    within = places // (layout.inner * layout.samples) * layout.inner + places % layout.inner
    order = sample.argsort(stable=True)
    each = within[order].reshape(layout.samples, -1)
    counts = torch.bincount(sample, minlength=layout.samples)
    return bool((counts == counts[0]).all()) and bool((each == each[:1]).all())


def check_choice(index: Tensor, layout: Layout | None, dim: int, *, real: bool) -> None:
    """Hold an index into other dimensions than the batch's to the rows of the result.

    Args:
        index: the index.
        layout: where the batch is in the result.
        dim: the dimension of the result that the index's dimension 0 becomes.
        real: the source holds real numbers; a single number that picks among masks only steers a loop.

    Raises:
        MixedRowsError: what is read of one sample is chosen by others.
    """
    mark = mark_of(index)
    if mark is None or (layout is not None and layout.samples == 1):
        return
    if index.dim() == 0:
        if real:
            raise MixedRowsError
        return
    if mark.layout is None or mark.pointer or layout is None or mark.layout.at(dim + mark.layout.dim) != layout:
        raise MixedRowsError


def mask_rows(mask: Tensor, layout: Layout, shape: torch.Size) -> Layout:
    """The layout of a mask's elements, read flat; ``layout`` and ``shape`` are those of what it picks from.

    Raises:
        MixedRowsError: the mask is not the doing of each sample alone.
    """
    flat = torch.Size((mask.numel(),))
    source = layout.reshaped(torch.Size(shape[: mask.dim()]), flat)
    if source is None:
        raise MixedRowsError
    mark = mark_of(mask)
    if mark is None or layout.samples == 1:
        return source
    own = None if mark.layout is None else mark.layout.reshaped(mask.shape, flat)
    if own is None or own != source:
        raise MixedRowsError
    return source
