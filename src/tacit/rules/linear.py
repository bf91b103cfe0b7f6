"""Matrix products of the batch with a weight."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.rules.broadcast import broadcast
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
from tacit.rules.registry import rule_for
from tacit.uses import (
    FORMED,
    TUNER,
    Asked,
    Dense,
    Gram,
    Layout,
    Outer,
    Product,
    Room,
    Use,
    clip_with,
    costs_of,
    product_key,
    wide_dtype,
)

_FEWEST = {"stored": 0.0, "gram": 1.0}
"""Costs by the number of calls, where arithmetic is as nothing beside them."""


class LinearFunction(RuleFunction):
    """``y = x Wᵀ + bias``, or ``y = x W + bias`` if ``flipped``; W is p × d (d × p if flipped)."""

    @staticmethod
    def forward(
        ctx: Any,
        carrier: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        flipped: bool,
        layout: Layout,
        weight_slot: Slot | None,
        bias_slot: Slot | None,
    ) -> Tensor:
        y = F.linear(x, weight.t() if flipped else weight, bias)
        if weight_slot is not None:
            weight_slot.expect(lambda: least_of_outer(layout.samples, prod(x.shape[:-1]), weight))
        # Under autocast the product ran in y's type: keep what it read, not what it was given.
        ctx.save_for_backward(SENTINEL, in_type(x, y.dtype), in_type(weight, y.dtype))
        ctx.settings = flipped, layout, weight_slot, bias_slot, x.dtype
        # With three dimensions and a bias, y is a view, which no in-place call may follow.
        return y if y.dim() == 2 else y.detach()

    @staticmethod
    @in_own_types
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        _, x, weight = ctx.saved_tensors
        flipped, layout, weight_slot, bias_slot, dtype = ctx.settings
        rows = layout.rows_of(g)
        if weight_slot is not None:
            record_outer(weight_slot, layout.rows_of(x), rows, weight.shape, flipped=flipped)
        if bias_slot is not None:
            bias_slot.record(Dense(layout.totals(g)))
        gradient = None
        if ctx.needs_input_grad[1]:
            gradient = in_type(g @ (weight.t() if flipped else weight), dtype)
        return None, gradient, None, None, None, None, None, None


def least_of_outer(samples: int, rows: int, weight: Tensor) -> int:
    """Bytes that the use of a matrix holds at least: factors of all rows, or a whole gradient of each sample."""
    outputs, inputs = weight.shape
    factors = rows * (outputs + inputs) * weight.itemsize
    return min(factors, samples * outputs * inputs * wide_dtype(weight).itemsize)


def record_outer(
    slot: Slot,
    a: Tensor,
    g: Tensor,
    shape: torch.Size,
    *,
    flipped: bool = False,
    gram: Gram | None = None,
    sharing: int = 1,
) -> None:
    """Record :func:`outer_use`; or the two factors, where they are joined with a table, or decided on later."""
    if slot.table or slot.deferred:
        slot.record(Outer(a, g, shape, flipped=flipped, gram=gram))
    else:
        slot.record(outer_use(a, g, shape, room=slot.room, flipped=flipped, gram=gram, sharing=sharing))


def outer_use(
    a: Tensor,
    g: Tensor,
    shape: torch.Size,
    *,
    room: Room,
    flipped: bool = False,
    gram: Gram | None = None,
    sharing: int = 1,
) -> Use:
    """Return the use of ``sum_t g[b, t] ⊗ a[b, t]``, dense at once where that is cheaper than Gram matrices.

    Where two passes are run, each has the form that is cheapest for what it asks; all have the same two factors.

    ``sharing`` uses that read the same ``g`` share its ``gram``. If ``room`` is short, memory decides.
    """
    outer = Outer(a, g, shape, flipped=flipped, gram=gram)
    if a.shape[1] == 1:  # the norm is that of two vectors
        return outer
    dtype = wide_dtype(a)  # in which norms are computed
    samples, positions, inputs = a.shape
    product = Product(samples, positions, inputs, g.shape[2], dtype.itemsize, sharing, room.asked)
    few = room.asked is Asked.BOTH and product.whole <= FORMED * dtype.itemsize  # the fewest calls are the quickest
    chosen = TUNER.pick(_FEWEST if few else costs_of(a.device, dtype).seconds(product))
    held = product.held(a.nbytes + g.nbytes)
    if room.asked is Asked.BOTH and not room.measured:  # as almost always: both forms are there, and none is tried
        use: Use = outer.stored(room.workspace) if room.form(chosen, held) == "stored" else outer
        use.product = product
        return use
    forms = outer.forms(room.asked, room.workspace)
    if room.measured:
        attempts = {name: partial(clip_with, form, a.device, room.asked) for name, form in forms.items()}
        chosen = TUNER.choose(product_key(product, a.device, dtype), attempts, chosen)
    use = forms[room.form(chosen, {name: held[name] for name in forms})]()
    use.product = product
    return use


def apply_linear(contact: Contact, x: Tensor, weight: Tensor, bias: Tensor | None, *, flipped: bool) -> Tensor:
    if weight.dim() != 2:
        contact.refuse(f"a weight of {weight.dim()} dimensions in a linear call")
    if contact.layout(weight) is not None or contact.layout(bias) is not None:
        contact.refuse("weight and bias come from the batch in part")
    layout = contact.batch_layout(x, features=1)
    slots = contact.slot(weight), contact.slot(bias)
    y: Tensor = LinearFunction.apply(contact.carrier, x, weight.detach(), detached(bias), flipped, layout, *slots)
    return y


@rule_for(F.linear)
def linear(contact: Contact, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return apply_linear(contact, input, weight, bias, flipped=False)


@rule_for(torch.addmm, Tensor.addmm)
def addmm(contact: Contact, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta·input + alpha·mat1 mat2``; with the batch in mat1 this is a linear layer (Hugging Face's Conv1D)."""
    plain = beta == 1 and alpha == 1 and input.shape == mat2.shape[1:]
    if plain and contact.layout(mat1) is not None and contact.layout(input) is None:
        return apply_linear(contact, mat1, mat2, input, flipped=True)
    product = contact.call(torch.matmul, mat1, mat2)
    product = product if alpha == 1 else contact.call(torch.mul, product, alpha)
    if beta == 0:
        return product  # type: ignore[no-any-return]
    scaled = input if beta == 1 else contact.call(torch.mul, input, beta)
    return contact.call(torch.add, product, scaled)  # type: ignore[no-any-return]


@rule_for(
    torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.mv, Tensor.mv
)
def matmul(contact: Contact, input: Tensor, other: Tensor) -> Tensor:
    """``input @ other`` with the batch on either side."""
    layout = contact.layout(input)
    if layout is None:
        return _weight_on_the_left(contact, input, other)
    if other.dim() == 1:
        column = contact.call(torch.unsqueeze, other, 1)
        return contact.call(torch.squeeze, contact.call(torch.matmul, input, column), -1)  # type: ignore[no-any-return]
    if other.dim() == 2 and input.dim() >= 2:
        return apply_linear(contact, input, other, None, flipped=True)
    if layout.dim == input.dim() - 2:
        return _batch_in_the_rows(contact, input, other, layout.dim)
    return broadcast(contact, contact.function, (input, other), {}, trailing=2)  # type: ignore[no-any-return]


def _batch_in_the_rows(contact: Contact, x: Tensor, weight: Tensor, dim: int) -> Tensor:
    """``x`` (H, B, d) @ ``weight`` (H, d, p), one matrix for each head: with the batch in front, (B, H, 1, d)."""
    rows = contact.call(torch.unsqueeze, contact.call(torch.movedim, x, dim, 0), -2)
    product = contact.call(torch.squeeze, contact.call(torch.matmul, rows, weight), -2)
    return contact.call(torch.movedim, product, 0, dim)  # type: ignore[no-any-return]


def _weight_on_the_left(contact: Contact, weight: Tensor, x: Tensor) -> Tensor:
    if weight.dim() == 2 and x.dim() == 2:
        # W (p, d) @ x (d, B): a linear layer on xᵀ.
        y = contact.call(F.linear, contact.call(torch.t, x), weight)
        return contact.call(torch.t, y)  # type: ignore[no-any-return]
    if weight.dim() == 1 or x.dim() < 3:
        equation = "...d,...dn->...n" if x.dim() > 1 else "...pd,d->...p"
        if x.dim() == 2 and weight.dim() > 2:
            equation = "...pd,dn->...pn"
        return contact.call(torch.einsum, equation, weight, x)  # type: ignore[no-any-return]
    return broadcast(contact, contact.function, (weight, x), {}, trailing=2)  # type: ignore[no-any-return]


@rule_for(Tensor.__rmatmul__)
def rmatmul(contact: Contact, input: Tensor, other: Tensor) -> Tensor:
    """``Tensor.__rmatmul__(input, other)`` is ``other @ input``."""
    return contact.call(torch.matmul, other, input)  # type: ignore[no-any-return]
