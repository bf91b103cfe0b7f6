"""Transposed convolutions: the adjoint of a convolution, so its weight's gradient is a convolution's.

``y = convᵀ(x, weight)`` scatters what ``x = conv(y, weight)`` would gather. So in the weight's gradient the output
gradient takes the place of a convolution's input, and x that of its output gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.rules.contact import SENTINEL, Contact, Slot, detached, in_own_types, refuse_double_backward
from tacit.rules.conv import FUNCTIONS, spread, weight_use
from tacit.rules.registry import rule_for
from tacit.uses import Dense, Geometry, Layout

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class ConvTransposeFunction(torch.autograd.Function):
    """``y = convᵀ(x, weight) + bias`` for ``x`` (N, C, *), ``weight`` (C, p/groups, *kernel)."""

    @staticmethod
    def forward(
        ctx: Any,
        carrier: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        extra: tuple[int, ...],
        layout: Layout,
        weight_slot: Slot | None,
        bias_slot: Slot | None,
    ) -> Tensor:
        function = _TRANSPOSED[x.dim() - 2]
        settings = (geometry.stride, geometry.padding, extra, geometry.groups, geometry.dilation)
        y: Tensor = function(x, weight, bias, *settings)
        if weight_slot is not None:
            weight_slot.expect(lambda: min(x.nbytes + y.nbytes, layout.samples * weight.nbytes))
        ctx.save_for_backward(SENTINEL, x.to(y.dtype), weight.to(y.dtype))
        ctx.settings = geometry, layout, weight_slot, bias_slot, x.dtype
        return y

    @staticmethod
    @in_own_types
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        refuse_double_backward()
        _, x, weight = ctx.saved_tensors
        geometry, layout, weight_slot, bias_slot, dtype = ctx.settings
        if bias_slot is not None:
            bias_slot.record(Dense(layout.totals(g.flatten(2).sum(2))))
        scattered = _scattered(g, x.shape[2:], weight.shape[2:], geometry)
        plain = Geometry(geometry.stride, (0,) * len(geometry.stride), geometry.dilation, geometry.groups)
        if weight_slot is not None:
            use = weight_use(scattered, x, weight, plain, layout, weight_slot.room, alone=weight_slot.alone)
            weight_slot.record(use)
        gradient = None
        if ctx.needs_input_grad[1]:
            function = FUNCTIONS[x.dim() - 2]
            gradient = function(scattered, weight, None, plain.stride, 0, plain.dilation, plain.groups).to(dtype)
        return None, gradient, *[None] * 7


def _scattered(g: Tensor, inputs: Sequence[int], kernel: Sequence[int], geometry: Geometry) -> Tensor:
    """The output gradient over all that the input was scattered to, the cropped padding included (as zeros)."""
    widths: list[int] = []
    for i in reversed(range(len(inputs))):
        needed = (inputs[i] - 1) * geometry.stride[i] + geometry.dilation[i] * (kernel[i] - 1) + 1
        widths += [geometry.padding[i], needed - g.shape[2 + i] - geometry.padding[i]]
    return F.pad(g, widths)


@rule_for(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
def conv_transpose(
    contact: Contact,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    if contact.layout(weight) is not None or contact.layout(bias) is not None:
        contact.refuse("weight and bias come from the batch in part")
    dims = weight.dim() - 2
    if input.dim() != dims + 2:
        contact.refuse(f"an input {tuple(input.shape)} without a batch dimension in front of its channels")
    layout = contact.batch_layout(input, features=dims + 1)
    geometry = Geometry(spread(stride, dims), spread(padding, dims), spread(dilation, dims), groups)
    slots = contact.slot(weight), contact.slot(bias)
    settings = (geometry, spread(output_padding, dims), layout, *slots)
    y: Tensor = ConvTransposeFunction.apply(contact.carrier, input, weight.detach(), detached(bias), *settings)
    return y
