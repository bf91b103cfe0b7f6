"""Rows that know their sample: what ``Layout`` does with picked, permuted and routed rows."""

from __future__ import annotations

import torch
from torch import Tensor


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
