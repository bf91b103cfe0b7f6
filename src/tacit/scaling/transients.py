"""What the clip of one parameter needs beside what is held: the formulas of docs/scaling.md."""

from __future__ import annotations

from tacit.uses import Dense, Gather, Outer, Patches, Routed, TableAndHead, Use, wide_dtype

_DOUBLE = 8
"""Bytes of a number in float64: Gram matrices are summed in it."""


def transient(use: Use, *, alone: bool) -> int:
    """Bytes at most, of norm and clipped sum.

    Args:
        use: all uses of one parameter, joined.
        alone: it is formed for its own clip, and not held until all are: a whole gradient counts here.
    """
    itemsize = wide_dtype(use.parts[-1]).itemsize
    total = use.shape.numel() * itemsize
    if isinstance(use, TableAndHead):
        return _tied(use, itemsize)
    if isinstance(use, Dense):
        return _formed(use, itemsize) + total if alone and use.product is not None else total
    if isinstance(use, Outer):
        return _outer(use, itemsize)
    if isinstance(use, Gather):
        return _gather(use, itemsize)
    if isinstance(use, Patches):
        return max(_grams(use.samples, use.g[0, 0].numel(), itemsize), total)
    if isinstance(use, Routed):
        return _copies(use) + max(_grams(use.samples, use.a.shape[1], itemsize), total)
    return total


def _tied(use: TableAndHead, itemsize: int) -> int:
    """The table's sums by row are kept from norm to clipped sum; that is a sum of two, each of the table's size."""
    rows = use.table.g.numel() * itemsize
    # ⟨E, H⟩ multiplies each position of the head with each of the table, and picks as many.
    products = 2 * use.samples * use.head.a.shape[1] * use.table.g.shape[1] * itemsize
    norm = _copies(use.head) + _copies(use.table) + products
    return rows + max(norm, _outer(use.head, itemsize), 3 * use.shape.numel() * itemsize)


def _formed(use: Dense, itemsize: int) -> int:
    """A whole gradient of each sample, and the factors that it is formed from, in the precision of norms."""
    assert use.product is not None
    return use.gradients.numel() * itemsize + use.product.factors


def _outer(use: Outer, itemsize: int) -> int:
    samples, positions, inputs = use.a.shape
    scaled = samples * positions * min(inputs, use.g.shape[2]) * itemsize
    norm = _grams(samples, positions, itemsize) if positions > 1 else 0
    return _copies(use) + max(norm, scaled + use.shape.numel() * itemsize)


def _grams(samples: int, positions: int, itemsize: int) -> int:
    """Both Gram matrices, and their product in float64."""
    return samples * positions**2 * (2 * itemsize + _DOUBLE)


def _gather(use: Gather, itemsize: int) -> int:
    """Sorted gradients and their sums by row; then the sums, scaled, and the table's clipped sum."""
    rows = use.g.numel() * itemsize
    return 2 * rows + use.shape.numel() * itemsize


def _copies(use: Use) -> int:
    """Copies in float32 of what is held in half precision."""
    return sum(part.numel() * 4 for part in use.parts if part.is_floating_point() and part.element_size() < 4)
