"""Where the samples are in what a module returns, found by running it once on the batch and on samples alone.

The same comparison tells whether the module treats samples apart at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from tacit.capture.apart import Call, left_alone, together
from tacit.capture.marks import Mark, tensors_in
from tacit.uses import Layout

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.complex128: 1e-8}


class Whole(Enum):
    """Outputs without a batch dimension."""

    MEAN = "the mean over the samples"
    SUM = "the sum over the samples"
    CONSTANT = "the same for every sample"


@dataclass(frozen=True, slots=True)
class Rows:
    """An output with one batch dimension: ``outer · B · inner`` rows in dimension ``dim``."""

    dim: int
    outer: int
    inner: int


Placement = Rows | Whole


class MixedError(Exception):
    """The module's output for a sample depends on the other samples, or cannot be told apart by sample."""


def place(parts: Tensor, placement: Placement) -> tuple[Tensor, Mark | None]:
    """Put together what the samples' runs returned, ``(B, ...)``; returns the output and its mark."""
    samples = parts.shape[0]
    if placement is Whole.CONSTANT:
        if parts.requires_grad:  # its gradient could not be divided among the samples
            raise MixedError("it returns a tensor without a batch dimension that depends on its parameters")
        if not _same(parts):  # what was alike in the first batch need not be in this one
            raise MixedError("it returns a tensor without a batch dimension that is not the same for every sample")
        return parts[0], None
    if isinstance(placement, Whole):
        value = parts.mean(0) if placement is Whole.MEAN else parts.sum(0)
        return value, Mark(None, lost="a mean or sum over the batch", reduced=samples > 1)
    value = together(parts, placement.dim, placement.outer, placement.inner)
    return value, Mark(Layout(samples, placement.dim, placement.outer, placement.inner))


def find_placements(
    call: Call, values: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> tuple[list[Placement], list[int], bool]:
    """Say where the samples are in each tensor of the output.

    Args:
        call: the call.
        values: its parameters, without a graph.
        buffers: its buffers; they are left as they are.

    Returns:
        The placements, the number of dimensions of each output, and whether the module was seen to treat samples apart
        (False if it draws random numbers even in eval mode, so that runs cannot be compared).

    Raises:
        MixedError: says what was found.
    """

    def outputs(batched: Sequence[Tensor]) -> list[Tensor]:
        held = {name: value.clone() for name, value in buffers.items()}
        return tensors_in(call.run({**values, **held}, {}, batched))

    with left_alone(call.entrance.module, training=False):
        before = torch.get_rng_state()
        whole = outputs([value.clone() for value in call.whole()])
        scalars = any(value.dim() == 0 for value in whole)
        chosen = range(call.samples) if scalars else sorted({0, call.samples // 2, call.samples - 1})
        rows = call.rows()
        alone = {b: outputs([row[b].clone() for row in rows]) for b in chosen}
        compared = torch.equal(before, torch.get_rng_state())
    if any(len(parts) != len(whole) for parts in alone.values()):
        raise MixedError("it returns another number of tensors for one sample than for the batch")
    layouts = [layout for layout in call.layouts if layout is not None]
    columns = [{b: parts[i] for b, parts in alone.items()} for i in range(len(whole))]
    found = [_placed(value, column, layouts, compared=compared) for value, column in zip(whole, columns, strict=True)]
    return found, [value.dim() for value in whole], compared


def _placed(whole: Tensor, alone: Mapping[int, Tensor], layouts: Sequence[Layout], *, compared: bool) -> Placement:
    first = alone[0]
    samples = layouts[0].samples
    if whole.dim() == 0:
        return _reduced(whole, alone, samples)
    if whole.dim() != first.dim():
        raise MixedError(f"its output is {tuple(whole.shape)} for the batch and {tuple(first.shape)} for one sample")
    if samples == 1:  # every dimension would do
        return Rows(0, 1, first.shape[0])
    moved = [dim for dim in range(whole.dim()) if whole.shape[dim] != first.shape[dim]]
    if not moved and all(_alike(part, whole) for part in alone.values()):
        return Whole.CONSTANT
    if len(moved) != 1 or whole.shape[moved[0]] != samples * first.shape[moved[0]]:
        raise MixedError(
            f"an output of shape {tuple(whole.shape)} for {samples} samples and {tuple(first.shape)} for one has no "
            "batch dimension"
        )
    dim = moved[0]
    factors = [(1, first.shape[dim])]
    factors += [(lay.outer, lay.inner) for lay in layouts if lay.outer * lay.inner == first.shape[dim]]
    if not compared:
        return Rows(dim, *factors[-1])
    for outer, inner in dict.fromkeys(reversed(factors)):
        parts = whole.unflatten(dim, (outer, samples, inner)).movedim(dim + 1, 0).flatten(dim + 1, dim + 2)
        if all(_alike(parts[b], part) for b, part in alone.items()):
            return Rows(dim, outer, inner)
    raise MixedError("its output for a sample changes with the other samples of the batch")


def _reduced(whole: Tensor, alone: Mapping[int, Tensor], samples: int) -> Placement:
    parts = torch.stack(list(alone.values()))
    if len(alone) == samples and whole.is_floating_point():
        if _alike(parts.mean(0), whole):
            return Whole.MEAN
        if _alike(parts.sum(0), whole):
            return Whole.SUM
    if all(_alike(part, whole) for part in parts):
        return Whole.CONSTANT
    raise MixedError(
        "it returns a number for the whole batch that is neither the mean nor the sum of those of its samples"
    )


def _same(parts: Tensor) -> bool:
    """Whether all samples' parts are exactly alike: one of them will count for all."""
    first = parts[:1]
    equal = parts == first
    if parts.is_floating_point() or parts.is_complex():
        equal |= parts.isnan() & first.isnan()
    return bool(equal.all())


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    limit = _TOLERANCE.get(one.dtype, 5e-2)
    finite = other[torch.isfinite(other)].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=limit, atol=limit * scale, equal_nan=True)
