"""Look-ups in a table."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.errors import ConfigurationError
from tacit.rules.contact import SENTINEL, Contact, RuleFunction, Slot, in_own_types, refuse_double_backward
from tacit.rules.registry import methods, rule_for
from tacit.uses import Gather, Layout


class EmbeddingFunction(RuleFunction):
    """``y = weight[ids]``; the row ``padding_idx`` gets no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        carrier: Tensor,
        ids: Tensor,
        weight: Tensor,
        padding_idx: int | None,
        by_frequency: bool,
        layout: Layout,
        slot: Slot,
    ) -> Tensor:
        ctx.save_for_backward(SENTINEL, ids)
        ctx.settings = weight.shape, padding_idx, by_frequency, layout, slot
        y = F.embedding(ids, weight)
        slot.expect(lambda: ids.nbytes + y.nbytes)
        return y

    @staticmethod
    @in_own_types
    def backward(ctx: Any, g: Tensor) -> tuple[None, ...]:
        refuse_double_backward()
        _, ids = ctx.saved_tensors
        (rows, _), padding_idx, by_frequency, layout, slot = ctx.settings
        # Where samples have different numbers of rows, they are filled up with zeros: here with an id of its own.
        filled = layout.split(ids + 1).reshape(layout.samples, -1) - 1
        ids = filled.clamp(min=0)
        g = layout.rows_of(g)
        if padding_idx is not None:
            g = g.masked_fill((ids == padding_idx)[:, :, None], 0)
        if by_frequency:
            g = g / _counts(filled)[:, :, None].to(g.dtype)
        slot.record(Gather(ids, g, rows))
        return (None,) * 7


def _counts(ids: Tensor) -> Tensor:
    """How often each id occurs in its own sample: the frequency in a batch of one, never across samples."""
    ordered, order = ids.sort(dim=1)
    low = torch.searchsorted(ordered, ordered, side="left")
    high = torch.searchsorted(ordered, ordered, side="right")
    return torch.zeros_like(ids).scatter_(1, order, high - low)


@rule_for(F.embedding)
def embedding(
    contact: Contact,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,  # noqa: ARG001  the noise makes every gradient dense
) -> Tensor:
    if max_norm is not None:
        raise ConfigurationError(
            f"{contact.where()}: max_norm={max_norm} (norm_type={norm_type}) rewrites the rows that the batch looks "
            "up, outside the noise, so the table would reveal which rows were used. Set max_norm=None."
        )
    slot = contact.slot(weight)
    if slot is None or contact.layout(weight) is not None:
        contact.refuse("the table itself comes from the batch")
    slot.looked_up()
    layout = contact.batch_layout(input)
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    y: Tensor = EmbeddingFunction.apply(
        contact.carrier, input, weight.detach(), padding_idx, scale_grad_by_freq, layout, slot
    )
    return y


@rule_for(Tensor.__getitem__)
def getitem(contact: Contact, input: Tensor, index: Any) -> Tensor:
    """``table[ids]`` or ``table[ids, ids]`` with ids from the batch, as relative position biases are read."""
    call = contact.call
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if not isinstance(part, Tensor) or part.is_floating_point() or part.dtype in (torch.bool, torch.uint8):
            contact.refuse(f"indexing a parameter with {type(part).__name__} from the batch")
    if contact.slot(input) is None or all(contact.layout(part) is None for part in parts):
        contact.refuse("indexing in which parameter and batch have changed places")
    ids = call(torch.remainder, parts[0], input.shape[0])
    for size, part in zip(input.shape[1:], parts[1:], strict=False):
        ids = call(torch.add, call(torch.mul, ids, size), call(torch.remainder, part, size))
    table = call(torch.reshape, input, (prod(input.shape[: len(parts)]), -1))
    picked = call(F.embedding, ids, table)
    return call(torch.reshape, picked, (*ids.shape, *input.shape[len(parts) :]))  # type: ignore[no-any-return]


@rule_for(*methods(["index_select"], torch, Tensor))
def index_select(contact: Contact, input: Tensor, dim: int, index: Tensor) -> Tensor:
    if dim % input.dim() != 0:
        contact.refuse(f"picking from a parameter along dimension {dim}")
    return contact.call(Tensor.__getitem__, input, index)  # type: ignore[no-any-return]
