"""Convolutions in one to three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.rules.contact import SENTINEL, Contact, Slot, detached, refuse_double_backward
from tacit.rules.linear import outer_use
from tacit.rules.registry import rule_for
from tacit.uses import Dense, Layout, Use

GROUPED_POSITIONS = 256
"""From this many output positions on, one grouped convolution beats unfolding, unless the patch is small."""

SMALL_PATCH = 64
"""Patches of at most this many numbers are unfolded at any size."""

FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True, slots=True)
class Geometry:
    """The constants of one convolution, one number per spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class ConvFunction(torch.autograd.Function):
    """``y = conv(x, weight) + bias`` for ``x`` (N, C, *), ``weight`` (p, C/groups, *kernel)."""

    @staticmethod
    def forward(
        ctx: Any,
        carrier: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        layout: Layout,
        weight_slot: Slot | None,
        bias_slot: Slot | None,
    ) -> Tensor:
        function = FUNCTIONS[x.dim() - 2]
        y = function(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
        ctx.save_for_backward(SENTINEL, x.to(y.dtype), weight.to(y.dtype))
        ctx.settings = geometry, layout, weight_slot, bias_slot, x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        refuse_double_backward()
        _, x, weight = ctx.saved_tensors
        geometry, layout, weight_slot, bias_slot, dtype = ctx.settings
        if weight_slot is not None:
            weight_slot.record(weight_use(x, g, weight, geometry, layout))
        if bias_slot is not None:
            bias_slot.record(Dense(layout.rows_of(g.flatten(2).sum(2)).sum(1)))
        gradient = None
        if ctx.needs_input_grad[1]:
            gradient = _backward(g, x, weight, geometry, geometry.groups, [True, False, False])[0].to(dtype)
        return None, gradient, None, None, None, None, None, None


def _backward(g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, groups: int, wanted: list[bool]) -> Any:
    zeros = [0] * len(geometry.stride)
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, geometry.stride, geometry.padding, geometry.dilation, False, zeros, groups, wanted
    )


def weight_use(x: Tensor, g: Tensor, weight: Tensor, geometry: Geometry, layout: Layout) -> Use:
    """Return the use of a convolution's weight, by whichever of two equal ways is cheaper at this size."""
    positions, patch = prod(g.shape[2:]), prod(weight.shape[1:])
    if geometry.groups == 1 and (positions < GROUPED_POSITIONS or patch <= SMALL_PATCH):
        a = unfold(x, weight.shape[2:], geometry)
        rows = g.flatten(2).transpose(1, 2)
        return outer_use(_positions(layout, a), _positions(layout, rows), weight.shape)
    per_row = _per_row_gradients(x, g, weight, geometry)
    return Dense(layout.split(per_row).reshape(layout.samples, -1, *weight.shape).sum(1))


def _positions(layout: Layout, rows: Tensor) -> Tensor:
    """(N, positions, features) → (B, T, features)."""
    return layout.split(rows).reshape(layout.samples, -1, rows.shape[-1])


def _per_row_gradients(x: Tensor, g: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Weight gradient of each row, (N, *weight.shape): rows folded into channel groups of one convolution."""
    size = x.shape[0]
    folded_x = x.reshape(1, -1, *x.shape[2:])
    folded_g = g.reshape(1, -1, *g.shape[2:])
    # Only the shape of the weight is read when its own gradient is asked for.
    shape_only = weight.new_empty(size * weight.shape[0], *weight.shape[1:])
    gradients = _backward(folded_g, folded_x, shape_only, geometry, size * geometry.groups, [False, True, False])[1]
    return gradients.view(size, *weight.shape)  # type: ignore[no-any-return]


def unfold(x: Tensor, kernel: Sequence[int], geometry: Geometry) -> Tensor:
    """Copy the patches under the kernel: (N, C, *) → (N, output positions, C · kernel size)."""
    padding = [width for side in reversed(geometry.padding) for width in (side, side)]
    x = F.pad(x, padding).contiguous() if any(padding) else x.contiguous()
    spatial = range(len(kernel))
    outputs = [(x.shape[2 + i] - geometry.dilation[i] * (kernel[i] - 1) - 1) // geometry.stride[i] + 1 for i in spatial]
    steps = x.stride()
    size = (x.shape[0], *outputs, x.shape[1], *kernel)
    strides = (
        steps[0],
        *(steps[2 + i] * geometry.stride[i] for i in spatial),
        steps[1],
        *(steps[2 + i] * geometry.dilation[i] for i in spatial),
    )
    return x.as_strided(size, strides).reshape(x.shape[0], prod(outputs), -1)


def spread(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """A setting as one number per spatial dimension."""
    if isinstance(value, int):
        return (value,) * dims
    values = tuple(value)
    return values * dims if len(values) == 1 else values


def _resolve_padding(
    contact: Contact, x: Tensor, kernel: Sequence[int], padding: Any, dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Turn ``padding="same"`` into numbers; an odd total is padded by one more at the end, on ``x`` itself."""
    dims = len(kernel)
    if padding == "valid":
        return x, (0,) * dims
    if padding != "same":
        return x, spread(padding, dims)
    totals = [dilation[i] * (kernel[i] - 1) for i in range(dims)]
    extra = [width for total in reversed(totals) for width in (0, total % 2)]
    if any(extra):
        x = contact.call(F.pad, x, extra)
    return x, tuple(total // 2 for total in totals)


@rule_for(F.conv1d, F.conv2d, F.conv3d)
def conv(
    contact: Contact,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    if contact.layout(weight) is not None or contact.layout(bias) is not None:
        contact.refuse("weight and bias come from the batch in part")
    dims = weight.dim() - 2
    if input.dim() != dims + 2:
        contact.refuse(f"an input {tuple(input.shape)} without a batch dimension in front of its channels")
    layout = contact.batch_layout(input, features=dims + 1)
    spaces = spread(dilation, dims)
    x, widths = _resolve_padding(contact, input, weight.shape[2:], padding, spaces)
    geometry = Geometry(spread(stride, dims), widths, spaces, groups)
    y: Tensor = ConvFunction.apply(
        contact.carrier, x, weight.detach(), detached(bias), geometry, layout, contact.slot(weight), contact.slot(bias)
    )
    return y
