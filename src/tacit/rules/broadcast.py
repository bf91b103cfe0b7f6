"""Calls that broadcast: give each sample its own copy of the parameter, and let autograd do the rest.

In ``y = f(x, w)`` with f elementwise, row b of y meets only row b of the expanded parameter, so the gradient of
that copy *is* the gradient of sample b. This one rule serves every elementwise torch function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tacit.rules.contact import SENTINEL, Contact, Slot, in_own_types, refuse_double_backward
from tacit.uses import Dense, Layout


class PerSample(torch.autograd.Function):
    """One copy of a parameter for each sample, ``(B, *shape)``, whose gradient is recorded as a dense use.

    ``guarded``: save the sentinel, so that recomputation by a call that makes no copies is noticed. (Elementwise calls
    save the same values either way.)
    """

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, value: Tensor, samples: int, slot: Slot, guarded: bool) -> Tensor:
        if guarded:
            ctx.save_for_backward(SENTINEL)
        ctx.slot = slot
        slot.expect(lambda: samples * value.nbytes)
        return value.expand(samples, *value.shape)

    @staticmethod
    @in_own_types
    def backward(ctx: Any, g: Tensor) -> tuple[None, ...]:
        refuse_double_backward()
        assert len(ctx.saved_tensors) <= 1  # compares them with what was recomputed
        ctx.slot.record(Dense(g))
        return (None,) * 5


class PerRow(torch.autograd.Function):
    """A parameter that already has one row for each row of the batch: row i's gradient is its sample's alone."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, value: Tensor, dim: int, layout: Layout, slot: Slot) -> Tensor:
        ctx.settings = dim, layout, slot
        slot.expect(lambda: layout.samples * value.nbytes)
        return value.view_as(value)

    @staticmethod
    @in_own_types
    def backward(ctx: Any, g: Tensor) -> tuple[None, ...]:
        refuse_double_backward()
        dim, layout, slot = ctx.settings
        slot.record_rows(g, dim, layout)
        return None, None, None, None, None


def broadcast(
    contact: Contact,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    trailing: int = 0,
) -> Any:
    """Call ``function`` with its trainable parameters replaced by one copy per sample.

    Args:
        contact: the contact.
        function: a torch function whose operands broadcast in all but the last ``trailing`` dimensions.
        args: its arguments.
        kwargs: its keyword arguments.
        trailing: number of last dimensions that do not broadcast (2 for matrix products).
    """
    operands = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    dims = max(value.dim() for value in operands)
    layout = batch_layout_of(contact, operands, dims, trailing)

    def convert(value: Any) -> Any:
        slot = contact.slot(value)
        return value if slot is None else per_sample(contact, value, layout, dims)

    return function(*map(convert, args), **{name: convert(value) for name, value in kwargs.items()})


def batch_layout_of(contact: Contact, operands: list[Tensor], dims: int, trailing: int = 0) -> Layout:
    """Return the one layout, in the result's dimensions, on which all operands of the batch agree."""
    found: Layout | None = None
    for value in operands:
        layout = contact.layout(value)
        if layout is None:
            continue
        aligned = layout.at(layout.dim + dims - value.dim())
        if found is not None and aligned != found and layout.samples == 1:
            sizes = [operand.shape[0] for operand in operands if operand.dim() == dims]
            return Layout(1, 0, inner=max(sizes))  # all rows are its, in any dimension
        if found is not None and aligned != found:
            contact.refuse(f"operands carry the batch in different ways: {found} and {aligned}")
        found = aligned
    if found is None or found.dim >= dims - trailing:
        contact.refuse("no operand carries the batch in a broadcast dimension")
    return found


def per_sample(contact: Contact, value: Tensor, layout: Layout, dims: int) -> Tensor:
    """Return ``value`` with one copy (or row) per sample, shaped to broadcast against ``dims`` dimensions.

    Args:
        contact: the contact.
        value: a trainable parameter, aligned to the last dimensions of the result.
        layout: the batch's layout in the result.
        dims: the number of dimensions of the result.
    """
    dim = layout.dim
    aligned = dim - (dims - value.dim())
    if aligned >= 0 and value.shape[aligned] != 1:
        value = contact.before_expansion(value, aligned)
    if aligned >= 0 and value.shape[aligned] != 1:
        if value.shape[aligned] != layout.rows:
            contact.refuse(f"dimension {aligned} of {tuple(value.shape)} does not broadcast against the batch")
        return _per_row(contact, value, aligned, layout)
    slot = contact.slot(value)
    assert slot is not None
    copies: Tensor = PerSample.apply(contact.carrier, value.detach(), layout.samples, slot, False)
    # (B, *shape) -> (B, 1…, *shape) with dims + 1 dimensions -> the batch in its place.
    copies = copies.reshape(layout.samples, *[1] * (dims - value.dim()), *value.shape)
    copies = copies.movedim(0, dim)
    if layout.owner is not None:
        return copies.squeeze(dim + 1).index_select(dim, layout.owners(copies.device))
    if layout.outer == layout.inner == 1:
        return copies.squeeze(dim + 1)
    before, behind = copies.shape[:dim], copies.shape[dim + 2 :]
    copies = copies.unsqueeze(dim).expand(*before, layout.outer, layout.samples, layout.inner, *behind)
    return copies.reshape(*before, layout.rows, *behind)


def per_sample_copies(contact: Contact, value: Tensor, samples: int) -> Tensor:
    """Return one copy of a parameter for each sample, ``(B, *shape)``: constants if it is not private."""
    slot = contact.slot(value)
    if slot is None:
        return value.detach().expand(samples, *value.shape)
    copies: Tensor = PerSample.apply(contact.carrier, value.detach(), samples, slot, True)
    return copies


def _per_row(contact: Contact, value: Tensor, dim: int, layout: Layout) -> Tensor:
    slot = contact.slot(value)
    assert slot is not None
    rows: Tensor = PerRow.apply(contact.carrier, value.detach(), dim, layout, slot)
    return rows
