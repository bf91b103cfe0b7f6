"""Rows that know their sample: what ``Layout`` does with picked, permuted and routed rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tacit.uses.layout import Layout


def pattern(owner: Tensor, samples: int) -> int | None:
    """Return ``inner`` if ``owner[i] == i // inner % samples`` for all rows and all samples occur; else None."""
    size = len(owner)
    if size == 0 or size % samples:
        return None
    first = int((owner == owner[0]).to(torch.uint8).argmin())  # the end of the first run; several samples, so > 0
    if first == 0 or size % (samples * first):
        return None
    regular = torch.arange(size, device=owner.device) // first % samples
    return first if torch.equal(owner, regular) else None


def packed(rows: Tensor, owner: Tensor, samples: int) -> Tensor:
    """Sort rows by sample.

    Args:
        rows: ``(R, ...)``.
        owner: ``(R,)``: each row's sample.
        samples: B.

    Returns:
        ``(B, T, ...)``: each sample's rows in their order, then zeros; T is the most rows of any sample, at least 1.
    """
    order = owner.argsort(stable=True)
    counts = owner.bincount(minlength=samples)
    ordered = owner[order]
    place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[ordered]
    longest = max(int(counts.max()), 1)
    out = rows.new_zeros((samples, longest, *rows.shape[1:]))
    out[ordered, place] = rows[order]
    return out


def between_groups(group: Tensor, places: Iterable[int]) -> bool:
    """Tell whether each place is an end, or lies where one group of rows ends and another begins."""
    inner = [place for place in places if 0 < place < len(group)]
    at = torch.tensor(inner, dtype=torch.long, device=group.device)
    return bool((group[at - 1] != group[at]).all())


def looser(one: Layout, other: Layout) -> Layout:
    """Of two layouts that agree about every row, keep what either says about places."""
    if one.group is None or other.group is None:
        return one if other.group is None else other
    if one.group is other.group or torch.equal(one.group, other.group):
        return one
    assert one.owner is not None
    return type(one)(one.samples, one.dim, 1, 1, one.owner, torch.zeros_like(one.group), one.partial)


def joined_groups(layouts: Iterable[Layout], device: torch.device) -> Tensor | None:
    """Number the groups of concatenated rows: pieces that were apart stay apart."""
    parts, start, known = [], 0, False
    for layout in layouts:
        group = torch.zeros(layout.rows, dtype=torch.long, device=device)
        if layout.group is not None and layout.rows:
            known = True
            group = (layout.group - layout.group.min()).long().to(device)
        parts.append(group + start)
        start += int(group.max()) + 1 if layout.rows else 0
    return torch.cat(parts) if known else None
