"""Telling whether a second backward saw what the first one saw.

Two passes over one forward may differ: a checkpoint that draws again, a hook that counts its calls, a backward that
writes into what it was given. The factors of the first would then not bound what the second sums up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tacit.uses.base import Use
from tacit.uses.dense import Dense
from tacit.uses.numerics import wide
from tacit.uses.outer import Outer

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Differences, relative to a sample's own norm, that the order of sums explains."""


SLACK = 2.0**-16
"""What part of its bound one use of a sample may differ by."""


class Fingerprint:
    """Numbers that tell the parts of a use.

    Of a part that has many rows for each sample they are its components along two random directions, found in one
    reading. Of a part of one row, and of whole gradients, they are the norm, on which the bound depends alone, and one
    such component.

    Both passes see the same parts of a matrix product, its two factors, whichever form each chooses. Where the first
    one forms their product, whose terms may cancel, the product's own component is held to *its* norm as well.

    Args:
        use: what a pass saw.
        first: of a second pass, what the first one saw in its place: the norms of its parts, which numbers are held
            to, are then the use's, too, and are not formed again.

    Attributes:
        lengths: ``(B,)``: a bound on the lengths of each sample's terms together.
    """

    def __init__(self, use: Use, first: Fingerprint | None = None) -> None:
        self._shapes = [part.shape for part in use.parts]
        self._numbers: list[Tensor] = []
        rows = [_rows(part) for part in use.parts]
        along = [_along(part, place) for place, part in enumerate(rows)]
        by_norm = [isinstance(use, Dense) or part.shape[1] == 1 for part in rows]
        known = None if first is None or first._shapes != self._shapes or any(by_norm) else first
        if known is not None:
            use.know_part_squares(known._squares)
        self._squares: tuple[Tensor, ...] = use.part_squares()
        for part, held, squares in zip(along, by_norm, self._squares, strict=True):
            self._numbers += [squares.sqrt(), _across(part)[0]] if held else _across(part).unbind()
        product = use if isinstance(use, Outer) and use.a.shape[1] > 1 else None
        if product is not None:
            self._numbers.append((along[0][0] * along[1][0]).sum(1))
        if first is None:
            self._hold(use, [norms.sqrt() for norms in self._squares], product)

    def _hold(self, use: Use, norms: Sequence[Tensor], product: Outer | None) -> None:
        """Keep what differences are measured by: of each number, by what norm, and how much of it."""
        self.lengths = torch.ones_like(norms[0])
        self._norms: list[Tensor] = []
        self._tolerances: list[float] = []
        for part, norm in zip(use.parts, norms, strict=True):
            self._norms += [norm] * 2
            self._tolerances += [TOLERANCE.get(part.dtype, 0.0)] * 2
            self.lengths = self.lengths * (norm if part.is_floating_point() else part[0].numel() ** 0.5)
        self._sizes = list(self._norms)
        if product is not None:
            self._norms.append(_norm_of_product(product))
            self._tolerances.append(self._tolerances[-1] if product.formed else 1.0)
            self._sizes.append(self.lengths)

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
    device = pairs[0][0]._numbers[0].device
    if any(first._shapes != second._shapes for first, second in pairs):
        return torch.tensor(True, device=device)
    once = torch.cat([number for first, _ in pairs for number in first._numbers])
    again = torch.cat([number for _, second in pairs for number in second._numbers])
    norms = [norm for first, _ in pairs for norm in first._norms]
    tolerances = [tolerance for first, _ in pairs for tolerance in first._tolerances]
    limits = torch.cat(list(torch._foreach_mul(norms, tolerances)))
    if most is not None:
        limits = torch.minimum(limits, _strict(pairs, most))
    same = (once - again).abs() <= limits
    # A number that left its type's range, though what it is of did not, tells nothing: it passes for no other.
    both_lost = ~torch.isfinite(once) & ~torch.isfinite(again) & ~torch.isfinite(torch.cat(norms))
    return ~(same | both_lost).all()


def _strict(pairs: Sequence[tuple[Fingerprint, Fingerprint]], most: Sequence[Tensor]) -> Tensor:
    """What numbers may differ by where terms are much longer than what is let through of their sum."""
    shares = [SLACK * bound / first.lengths for bound, (first, _) in zip(most, pairs, strict=True)]
    each = [share * size for share, (first, _) in zip(shares, pairs, strict=True) for size in first._sizes]
    return torch.cat(each).nan_to_num(nan=math.inf)


def _norm_of_product(use: Outer) -> Tensor:
    if not use.formed:
        return torch.full((use.samples,), math.inf, dtype=torch.float64, device=use.device)
    return use.squared_norms().sqrt()


def _rows(part: Tensor) -> Tensor:
    """Each sample's rows: ``(B, T, width)``; a part ``(B, n)`` is one row."""
    values = wide(part) if part.is_floating_point() else part.double()
    return values.reshape(len(part), 1, -1) if part.dim() < 3 else values.flatten(2)


def _along(rows: Tensor, which: int) -> Tensor:
    """The components of each row along two directions: ``(2, B, T)``, float64; the rows are read once."""
    samples, count, width = rows.shape
    directions, scale = _directions(width, which, rows.dtype, rows.device)
    components = torch.mm(directions, rows.reshape(-1, width).t())
    return components.view(2, samples, count).double().mul_(scale)


def _across(along: Tensor) -> Tensor:
    """Of these, the components along a direction for each: ``(2, B)``."""
    directions, scale = _directions(along.shape[2], -1, along.dtype, along.device)
    return (along * (scale * directions)[:, None]).sum(2)


@lru_cache(maxsize=256)
def _directions(size: int, which: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, float]:
    """Numbers of either sign, all different and of about one size: each counts, and two that change places tell.

    Returns:
        two rows ``(2, size)`` of length 1 about, so that components are not larger than what they are of; and the power
        of 2 that makes the numbers as large as 1.
    """
    generator = torch.Generator().manual_seed(8 * size + which + 1)
    signs = 2 * torch.randint(0, 2, (2, size), generator=generator) - 1
    numbers = signs * (0.5 + torch.rand((2, size), generator=generator, dtype=torch.float64))
    scale = 2.0 ** math.ceil(math.log2(size) / 2) if size else 1.0
    return (numbers / scale).to(device, dtype), scale
