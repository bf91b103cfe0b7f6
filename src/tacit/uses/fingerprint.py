"""Telling whether a second backward saw what the first one saw.

Two passes over one forward may differ: a checkpoint that draws again, a hook that counts its calls, a backward that
writes into what it was given. The factors of the first would then not bound what the second sums up.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from tacit.uses.base import Use
from tacit.uses.numerics import sample_squares, wide

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Differences, relative to a sample's own norm, that the order of sums explains."""


class Fingerprint:
    """Numbers that tell the parts of a use: each sample's norm, and its component along a random direction."""

    def __init__(self, use: Use) -> None:
        self._parts = [_numbers(part) for part in use.parts]
        self._tolerances = [TOLERANCE.get(part.dtype, 0.0) for part in use.parts]

    def differs(self, other: Fingerprint) -> Tensor:
        """Whether any sample is another: a boolean scalar."""
        found = [
            _differ(*one, *two, tolerance)
            for one, two, tolerance in zip(self._parts, other._parts, self._tolerances, strict=True)
            if one[0].shape == two[0].shape
        ]
        shapes = [one[0].shape for one in self._parts] != [two[0].shape for two in other._parts]
        return torch.stack([*found, torch.tensor(shapes, device=self._parts[0][0].device)]).any()


def _numbers(part: Tensor) -> tuple[Tensor, Tensor]:
    values = wide(part) if part.is_floating_point() else part.double()
    rows = values.reshape(part.shape[0], -1)
    along = rows.mv(_direction(rows.shape[1], rows.dtype, rows.device)).double()
    return sample_squares(rows).sqrt(), along


def _differ(norm: Tensor, along: Tensor, norm_again: Tensor, along_again: Tensor, tolerance: float) -> Tensor:
    limit = tolerance * norm
    same = ((norm - norm_again).abs() <= limit) & ((along - along_again).abs() <= limit)
    both_lost = ~torch.isfinite(norm) & ~torch.isfinite(norm_again)
    return ~(same | both_lost).all()


@lru_cache(maxsize=64)
def _direction(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Signs: each number counts as much as any other."""
    generator = torch.Generator().manual_seed(size)
    signs = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8)
    return (2 * signs - 1).to(device, dtype)
