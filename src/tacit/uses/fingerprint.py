"""Telling whether a second backward saw what the first one saw.

Two passes over one forward may differ: a checkpoint that draws again, a hook that counts its calls, a backward that
writes into what it was given. The factors of the first would then not bound what the second sums up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tacit.uses.base import Use
from tacit.uses.numerics import wide
from tacit.uses.outer import Outer

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Differences, relative to a sample's own norm, that the order of sums explains."""


SLACK = 2.0**-16
"""What part of its bound one use of a sample may differ by."""


class Fingerprint:
    """Numbers that tell the parts of a use: each sample's norm, and its component along a random direction.

    Both passes see the same parts of a matrix product, its two factors, whichever form each chooses. Where the first
    one forms their product, whose terms may cancel, the product's own component is held to *its* norm as well.

    Attributes:
        lengths: ``(B,)``: a bound on the lengths of each sample's terms together.
    """

    def __init__(self, use: Use) -> None:
        self._shapes = [part.shape for part in use.parts]
        numbers, limits, sizes = [], [], []
        rows = [_rows_along(part, place) for place, part in enumerate(use.parts)]
        lengths = torch.ones(use.samples, dtype=torch.float64, device=use.device)
        for part, along, squares in zip(use.parts, rows, use.part_squares(), strict=True):
            norm = squares.sqrt()
            numbers += [norm, along.mv(_direction(along.shape[1], -1, along.dtype, along.device)).double()]
            limits += [TOLERANCE.get(part.dtype, 0.0) * norm] * 2
            sizes += [norm] * 2
            lengths = lengths * norm if part.is_floating_point() else lengths * part[0].numel() ** 0.5
        if isinstance(use, Outer) and use.a.shape[1] > 1:
            numbers.append((rows[0] * rows[1]).sum(1).double())
            limits.append(_limit_of_product(use))
            sizes.append(lengths)
        self._numbers, self._limits, self._sizes = torch.stack(numbers), torch.stack(limits), torch.stack(sizes)
        self.lengths = lengths

    def differs(self, other: Fingerprint) -> Tensor:
        """Whether any sample of a second pass is another: a boolean scalar."""
        return any_differ([(self, other)])


def any_differ(pairs: Sequence[tuple[Fingerprint, Fingerprint]], most: Sequence[Tensor] | None = None) -> Tensor:
    """Whether any sample differs between the first and the second of any pair: a boolean scalar.

    Args:
        pairs: what both passes saw.
        most: for each pair ``(B,)``: how long a sample's gradient may be that its factor lets through. Where its terms
            are much longer, for they cancel, a small change of them is a large one of their sum: then as much less is
            let pass, down to nothing. Two passes over one graph see the same to the last bit.
    """
    device = pairs[0][0]._numbers.device
    if any(first._shapes != second._shapes for first, second in pairs):
        return torch.tensor(True, device=device)
    once, again = (_together(each._numbers for each in several) for several in zip(*pairs, strict=True))
    limits = _together(first._limits for first, _ in pairs)
    if most is not None:
        shares = (SLACK * bound / first.lengths for bound, (first, _) in zip(most, pairs, strict=True))
        strict = [share * first._sizes for share, (first, _) in zip(shares, pairs, strict=True)]
        limits = torch.minimum(limits, _together(strict).nan_to_num(nan=math.inf))
    same = (once - again).abs() <= limits
    both_lost = ~torch.isfinite(once) & ~torch.isfinite(again)
    return ~(same | both_lost).all()


def _together(numbers: Iterable[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in numbers])


def _limit_of_product(use: Outer) -> Tensor:
    if not use.formed:
        return torch.full((use.samples,), math.inf, dtype=torch.float64, device=use.device)
    return TOLERANCE.get(use.g.dtype, 0.0) * use.squared_norms().sqrt()


def _rows_along(part: Tensor, which: int) -> Tensor:
    """The component of each row of each sample along a direction: ``(B, T)``; a part ``(B, n)`` is one row."""
    values = wide(part) if part.is_floating_point() else part.double()
    width, count = (part.shape[-1], math.prod(part.shape[1:-1])) if part.dim() > 1 else (1, 1)
    rows = values.reshape(part.shape[0] * count, width)
    return rows.mv(_direction(width, which, rows.dtype, rows.device)).view(part.shape[0], count)


@lru_cache(maxsize=64)
def _direction(size: int, which: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of either sign, all different and of about one size: each counts, and two that change places tell."""
    generator = torch.Generator().manual_seed(8 * size + which + 1)
    signs = 2 * torch.randint(0, 2, (size,), generator=generator) - 1
    return (signs * (0.5 + torch.rand(size, generator=generator, dtype=torch.float64))).to(device, dtype)
