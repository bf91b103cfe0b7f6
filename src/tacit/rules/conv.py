"""Convolutions in one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.rules.contact import (
    SENTINEL,
    Contact,
    RuleFunction,
    Slot,
    detached,
    in_own_types,
    in_type,
    refuse_double_backward,
)
from tacit.rules.linear import outer_use
from tacit.rules.registry import rule_for
from tacit.uses import (
    TUNER,
    Asked,
    Dense,
    Geometry,
    Layout,
    Patches,
    Product,
    Room,
    Use,
    clip_with,
    costs_of,
    gradients,
    gradients_by_patches,
    row_gradients,
    unfold,
    wide_dtype,
)

GROUPED_POSITIONS, SMALL_PATCH = 256, 64
"""From so many output positions on whole gradients are mostly quickest, but not for patches of so few numbers."""

MOST_FORMED = 4096
"""In sums over more positions so much cancels by chance that norms of what is formed for them alone are not trusted."""

MOST_POSITIONS = 144
"""Gram matrices of this many output positions at most are tried: their size grows with its square."""

MOST_BYTES = 2**28
"""Forms that take less memory are always tried, others only if they take the least."""

FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class ConvFunction(RuleFunction):
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
        ctx.save_for_backward(SENTINEL, in_type(x, y.dtype), in_type(weight, y.dtype))
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
                room, alone = weight_slot.room, weight_slot.alone
                weight_slot.record(weight_use(x, g, weight, geometry, layout, room, alone=alone))
        if bias_slot is not None:
            bias_slot.record(Dense(layout.totals(g.flatten(2).sum(2))))
        gradient = None
        if ctx.needs_input_grad[1]:
            gradient = in_type(gradients(g, x, weight, geometry, geometry.groups, [True, False, False])[0], dtype)
        return None, gradient, None, None, None, None, None, None


def weight_use(
    x: Tensor, g: Tensor, weight: Tensor, geometry: Geometry, layout: Layout, room: Room, *, alone: bool = False
) -> Use:
    """Return the use of a convolution's weight, in the form that was found quickest for these shapes.

    If ``room`` is short, memory decides. In each of two passes a use that is ``alone`` keeps input and output gradient;
    several are joined, and what is left where they cancel must be the same in both passes: those are formed whole.
    """
    plan = _planned(x.shape, g.shape, weight.shape, geometry, layout.samples, x.dtype, x.device.type)
    # Batches differ in size from step to step: those of similar size share a choice.
    key = ("convolution", plan.sizes, geometry, x.dtype, x.device, torch.get_num_threads())
    if room.asked is not Asked.BOTH and alone and layout.samples == len(x) and prod(g.shape[2:]) <= MOST_FORMED:
        return _in_one_pass(x, g, weight.shape, geometry, room.asked, plan, (*key, Asked.NORM))
    forms = _forms(x, g, weight.shape, geometry, layout)
    attempts = {name: partial(clip_with, forms[name], x.device) for name in plan.held}
    chosen = TUNER.choose(key, attempts, plan.guess)
    use = forms[room.form(chosen, plan.held)]()
    use.tried = key
    return use


def _in_one_pass(
    x: Tensor, g: Tensor, shape: torch.Size, geometry: Geometry, asked: Asked, plan: Plan, key: tuple[object, ...]
) -> Patches:
    """The use in one of two passes: its norm is found in the quickest way; for its sum there is one."""
    if asked is Asked.SUM:
        return Patches(x, g, shape, geometry)
    ways = [way for way in plan.held if way != "unfolded" or x.device.type == "cpu"]
    forms = {way: partial(Patches, x, g, shape, geometry, way=way) for way in ways}
    attempts = {way: partial(clip_with, form, x.device, asked) for way, form in forms.items()}
    use = forms[TUNER.choose(key, attempts, plan.guess)]()
    use.tried = key
    return use


def _undecided(x: Tensor, g: Tensor, weight: Tensor, geometry: Geometry, layout: Layout) -> Use:
    """What :func:`weight_use` decides on later; whole gradients at once where a sample has several rows."""
    if layout.samples == x.shape[0]:
        return Patches(x, g, weight.shape, geometry)
    return _whole(x, g, weight.shape, geometry, layout)


def _whole(x: Tensor, g: Tensor, shape: torch.Size, geometry: Geometry, layout: Layout) -> Use:
    return Dense(layout.totals(row_gradients(x, g, shape, geometry), len(shape)))


def _forms(x: Tensor, g: Tensor, shape: torch.Size, geometry: Geometry, layout: Layout) -> dict[str, Callable[[], Use]]:
    """The forms that a use may take: whole gradients of single samples, by one convolution or from patches, which
    are copied for a few samples at a time; all patches, if Gram matrices are better; input and output gradient."""

    def unfolded() -> Use:
        if layout.samples == len(x) and x.device.type == "cpu" and _whole_is_quicker(x, g, shape):
            return Dense(gradients_by_patches(x, g, shape, geometry))
        patches, rows = unfold(x, shape[2:], geometry), g.flatten(2).transpose(1, 2)
        return outer_use(_positions(layout, patches), _positions(layout, rows), shape, room=Room())

    return {
        "grouped": lambda: _whole(x, g, shape, geometry, layout),
        "unfolded": unfolded,
        "pixels": lambda: Patches(x, g, shape, geometry),
    }


def _whole_is_quicker(x: Tensor, g: Tensor, shape: torch.Size) -> bool:
    """Whether a product with patches is predicted to be better whole than by Gram matrices."""
    dtype = wide_dtype(x)
    product = Product(len(x), prod(g.shape[2:]), prod(shape[1:]), shape[0], dtype.itemsize)
    return product.positions > 1 and TUNER.pick(costs_of(x.device, dtype).seconds(product)) == "stored"


class Plan(NamedTuple):
    """What the sizes of a convolution say of the forms of its use.

    Attributes:
        sizes: by which a choice is kept.
        guess: which form is mostly the quickest.
        held: the forms that are tried, and what each may hold until the clip, in bytes.
    """

    sizes: tuple[object, ...]
    guess: str
    held: dict[str, int]


@lru_cache(maxsize=4096)
def _planned(
    x: torch.Size, g: torch.Size, shape: torch.Size, geometry: Geometry, samples: int, dtype: torch.dtype, device: str
) -> Plan:
    """Plan for tensors of these shapes. Forms that need much more memory than another one are not tried."""
    positions, patch, bytes_each = prod(g[2:]), prod(shape[1:]), dtype.itemsize
    sizes = {"grouped": shape.numel()}
    apart = samples == x[0] and device == "cpu"
    if geometry.groups == 1:  # patches of a few samples at a time, or of all
        sizes["unfolded"] = shape.numel() if apart else positions * patch
    # On a GPU a convolution may run in TF32 where the product of Gram matrices does not: norm and sum would differ.
    if geometry.plain and len(shape) == 4 and apart and positions <= MOST_POSITIONS:
        sizes["pixels"] = 2 * positions**2
    sizes = {name: size * x[0] * bytes_each for name, size in sizes.items()}
    most = max(MOST_BYTES, min(sizes.values()))
    whole = samples * shape.numel() * bytes_each
    factors = (x.numel() + g.numel()) * bytes_each
    held = {"grouped": whole, "unfolded": max(whole, sizes.get("unfolded", 0)), "pixels": factors}
    small = positions < GROUPED_POSITIONS or patch <= SMALL_PATCH
    guess = "unfolded" if small and sizes.get("unfolded", math.inf) <= most else "grouped"
    tried = {name: held[name] for name, size in sizes.items() if size <= most}
    return Plan((x[0].bit_length(), x[1:], shape, samples == x[0]), guess, tried)


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
