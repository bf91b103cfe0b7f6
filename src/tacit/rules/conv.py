"""Convolutions in one to three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.rules.contact import SENTINEL, Contact, Slot, detached, in_own_types, refuse_double_backward
from tacit.rules.linear import outer_use
from tacit.rules.registry import rule_for
from tacit.uses import TUNER, Dense, Geometry, Layout, Patches, Room, Use, clip_with, gradients, row_gradients, unfold

GROUPED_POSITIONS, SMALL_PATCH = 256, 64
"""From so many output positions on whole gradients are mostly quickest, but not for patches of so few numbers."""

MOST_POSITIONS = 144
"""Gram matrices of this many output positions at most are tried: their size grows with its square."""

MOST_BYTES = 2**28
"""Forms that take less memory are always tried, others only if they take the least."""

FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


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
        if weight_slot is not None:
            if weight_slot.deferred:
                weight_slot.record(_undecided(x, g, weight, geometry, layout))
            else:
                weight_slot.record(weight_use(x, g, weight, geometry, layout, weight_slot.room))
        if bias_slot is not None:
            bias_slot.record(Dense(layout.rows_of(g.flatten(2).sum(2)).sum(1)))
        gradient = None
        if ctx.needs_input_grad[1]:
            gradient = gradients(g, x, weight, geometry, geometry.groups, [True, False, False])[0].to(dtype)
        return None, gradient, None, None, None, None, None, None


def weight_use(x: Tensor, g: Tensor, weight: Tensor, geometry: Geometry, layout: Layout, room: Room) -> Use:
    """Return the use of a convolution's weight, in the form that was found quickest for these shapes.

    If ``room`` is short, memory decides.
    """
    forms, held = _forms(x, g, weight.shape, geometry, layout)
    # Batches differ in size from step to step: those of similar size share a choice.
    sizes = x.shape[0].bit_length(), x.shape[1:], weight.shape, layout.samples == x.shape[0]
    key = ("convolution", sizes, geometry, x.dtype, x.device, torch.get_num_threads())
    small = prod(g.shape[2:]) < GROUPED_POSITIONS or prod(weight.shape[1:]) <= SMALL_PATCH
    guess = "unfolded" if small and "unfolded" in forms else "grouped"
    attempts = {name: partial(clip_with, form, x.device) for name, form in forms.items()}
    chosen = TUNER.choose(key, attempts, guess)
    use = forms[room.form(chosen, held)]()
    use.tried = key
    return use


def _undecided(x: Tensor, g: Tensor, weight: Tensor, geometry: Geometry, layout: Layout) -> Use:
    """What :func:`weight_use` decides on later; whole gradients at once where a sample has several rows."""
    if layout.samples == x.shape[0]:
        return Patches(x, g, weight.shape, geometry)
    return _whole(x, g, weight.shape, geometry, layout)


def _whole(x: Tensor, g: Tensor, shape: torch.Size, geometry: Geometry, layout: Layout) -> Use:
    rows = row_gradients(x, g, shape, geometry)
    return Dense(layout.split(rows).reshape(layout.samples, -1, *shape).sum(1))


def _forms(
    x: Tensor, g: Tensor, shape: torch.Size, geometry: Geometry, layout: Layout
) -> tuple[dict[str, Callable[[], Use]], dict[str, int]]:
    """The forms that a use may take: whole gradients of single samples; patches, copied; input and output gradient.

    Those that need much more memory than another one are not tried.

    Returns:
        The forms by name, and what each may hold until the clip, in bytes.
    """

    def unfolded() -> Use:
        patches, rows = unfold(x, shape[2:], geometry), g.flatten(2).transpose(1, 2)
        return outer_use(_positions(layout, patches), _positions(layout, rows), shape, room=Room())

    positions = prod(g.shape[2:])
    sizes = {"grouped": shape.numel()}
    forms: dict[str, Callable[[], Use]] = {"grouped": lambda: _whole(x, g, shape, geometry, layout)}
    if geometry.groups == 1:
        sizes["unfolded"], forms["unfolded"] = positions * prod(shape[1:]), unfolded
    # On a GPU a convolution may run in TF32 where the product of Gram matrices does not: norm and sum would differ.
    pictures = len(shape) == 4 and layout.samples == x.shape[0] and x.device.type == "cpu"
    if geometry.plain and pictures and positions <= MOST_POSITIONS:
        sizes["pixels"], forms["pixels"] = 2 * positions**2, lambda: Patches(x, g, shape, geometry)
    sizes = {name: size * x.shape[0] * x.element_size() for name, size in sizes.items()}
    most = max(MOST_BYTES, min(sizes.values()))
    whole = layout.samples * shape.numel() * x.element_size()
    held = {"grouped": whole, "unfolded": max(whole, sizes.get("unfolded", 0)), "pixels": x.nbytes + g.nbytes}
    chosen = {name: form for name, form in forms.items() if sizes[name] <= most}
    return chosen, {name: held[name] for name in chosen}


def _positions(layout: Layout, rows: Tensor) -> Tensor:
    """(N, positions, features) → (B, T, features)."""
    return layout.split(rows).reshape(layout.samples, -1, rows.shape[-1])


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
