"""Grouped matrix products, as mixtures of experts call them: rows sorted by expert, one matrix for each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.rules.contact import SENTINEL, Contact, Slot, in_own_types, refuse_double_backward
from tacit.rules.registry import methods, rule_for
from tacit.uses import Layout, Routed


class GroupedFunction(torch.autograd.Function):
    """``y[r] = x[r] W[e_r]`` for x (S, d), W (E, d, p), and the expert e_r of each row (S,)."""

    @staticmethod
    def forward(
        ctx: Any,
        carrier: Tensor,
        x: Tensor,
        weight: Tensor,
        expert: Tensor,
        layout: Layout,
        slot: Slot | None,
    ) -> Tensor:
        ctx.save_for_backward(SENTINEL, x, weight, expert)
        ctx.settings = layout, slot
        y = _product(x, weight, expert)
        if slot is not None:
            slot.expect(lambda: x.nbytes + y.nbytes)
        return y

    @staticmethod
    @in_own_types
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        refuse_double_backward()
        _, x, weight, expert = ctx.saved_tensors
        layout, slot = ctx.settings
        if slot is not None:
            experts = layout.rows_of(expert.unsqueeze(1)).squeeze(2)
            slot.record(Routed(layout.rows_of(x), layout.rows_of(g), experts, weight.shape[0], flipped=True))
        gradient = _product(g, weight.transpose(1, 2), expert) if ctx.needs_input_grad[1] else None
        return None, gradient, None, None, None, None


def _own_experts(layout: Layout, expert: Tensor, experts: int) -> bool:
    """Whether each row meets the expert that it was sorted by: offsets alone are counts over the whole batch."""
    if layout.group is None:
        return False
    group = layout.group.to(expert.device)
    return bool(((expert == group) | ((group >= experts) & (expert >= experts))).all())


def _product(x: Tensor, weight: Tensor, expert: Tensor) -> Tensor:
    """Rows of no expert (past the last offset) become zeros."""
    y = x.new_zeros((x.shape[0], weight.shape[2]))
    for e in range(weight.shape[0]):
        rows = (expert == e).nonzero().flatten()
        if len(rows):
            y[rows] = x[rows] @ weight[e]
    return y


@rule_for(*methods(["grouped_mm"], F), *methods(["_grouped_mm"], torch), always=True)
def grouped_mm(
    contact: Contact,
    mat_a: Tensor,
    mat_b: Tensor,
    *,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    if offs is None or bias is not None or mat_a.dim() != 2 or mat_b.dim() != 3 or contact.layout(mat_b) is not None:
        contact.refuse(f"a grouped product of {tuple(mat_a.shape)} and {tuple(mat_b.shape)} of another form")
    layout = contact.batch_layout(mat_a, features=1)
    places = torch.arange(len(mat_a), device=mat_a.device)
    expert = torch.searchsorted(offs.detach().to(torch.int64), places, right=True)
    if layout.samples > 1 and not _own_experts(layout, expert, mat_b.shape[0]):
        contact.refuse("rows that were not sorted by their own samples' experts, or offsets that cut them off")
    y: Tensor = GroupedFunction.apply(contact.carrier, mat_a, mat_b.detach(), expert, layout, contact.slot(mat_b))
    contact.mark(y, layout)
    return y if out_dtype is None else contact.call(Tensor.to, y, out_dtype)
