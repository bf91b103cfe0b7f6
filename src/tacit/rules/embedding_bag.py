"""Bags of look-ups: sums, means and maxima of several rows of a table."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.errors import LayoutError
from tacit.rules.contact import Contact
from tacit.rules.registry import rule_for
from tacit.uses import Layout


@rule_for(F.embedding_bag)
def embedding_bag(
    contact: Contact,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,  # noqa: ARG001  the noise makes every gradient dense
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Bags (B, T), or (N,) with ``offsets`` (B,): then all bags are padded to the longest."""
    call = contact.call
    if mode not in ("sum", "mean", "max"):
        raise ValueError(f"mode={mode!r}: it must be 'sum', 'mean' or 'max'.")
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    if input.dim() == 1:
        if offsets is None:
            contact.refuse("bags (N,) without offsets")
        bags = _Bags(contact, input, offsets, include_last_offset)
        counted = bags.padded(torch.ones_like(input, dtype=torch.bool))
        if per_sample_weights is not None:
            per_sample_weights = bags.padded_weights(per_sample_weights)
        input = bags.padded(input)
    else:
        counted = torch.ones(input.shape, dtype=torch.bool, device=input.device)
    if padding_idx is not None:
        counted = call(torch.logical_and, counted, call(torch.ne, input, padding_idx))
    rows = call(F.embedding, input, weight, None, max_norm, norm_type, scale_grad_by_freq)
    counted = call(torch.unsqueeze, counted, -1)
    if mode == "max":
        hidden = torch.full((), -torch.inf, dtype=rows.dtype, device=rows.device)
        most = call(torch.amax, call(torch.where, counted, rows, hidden), 1)
        return call(torch.where, call(torch.any, counted, 1), most, torch.zeros_like(hidden))  # type: ignore[no-any-return]
    if per_sample_weights is not None:
        rows = call(torch.mul, rows, call(torch.unsqueeze, per_sample_weights, -1))
    total = call(torch.sum, call(torch.mul, rows, counted), 1)
    if mode == "sum":
        return total  # type: ignore[no-any-return]
    return call(torch.div, total, call(torch.clamp, call(torch.sum, counted, 1), min=1))  # type: ignore[no-any-return]


class _Bags:
    """Rows (N,) that offsets divide among the samples: bag i belongs to the sample of offset i."""

    def __init__(self, contact: Contact, ids: Tensor, offsets: Tensor, include_last: bool) -> None:
        self._contact = contact
        starts = offsets[:-1] if include_last else offsets
        self._count = len(starts)
        ends = torch.cat([starts[1:], offsets[-1:] if include_last else starts.new_tensor([len(ids)])])
        self._sizes = ends - starts
        self._bag = torch.repeat_interleave(torch.arange(self._count, device=ids.device), self._sizes)
        self._layout = self._samples(ids, offsets, include_last)
        self._place = torch.arange(len(self._bag), device=ids.device) - starts[self._bag]
        self._start = int(starts[0]) if self._count else 0

    def _samples(self, ids: Tensor, offsets: Tensor, include_last: bool) -> Layout:
        known, own = self._contact.layout(offsets), self._contact.layout(ids)
        if include_last and known is not None:
            self._contact.refuse("offsets of the batch with include_last_offset=True: leave the last one out")
        if known is not None and (own is None or own.rows != known.rows):
            return known
        layout = known or (own and Layout(own.samples, 0, own.outer, 1))
        if layout is None or own is None or layout.rows != self._count:
            self._contact.refuse("bags that are not those of the samples")
        owners = torch.arange(own.rows, device=ids.device) // own.inner % own.samples
        bags = torch.arange(layout.rows, device=ids.device) // layout.inner % layout.samples
        if not torch.equal(owners, bags[self._bag]):
            raise LayoutError(
                f"{self._contact.where()}: there are as many ids as samples, and offsets that divide them otherwise: "
                "whose ids they are cannot be told. Pass bags as (B, T) padded with padding_idx."
            )
        return layout

    def padded(self, values: Tensor) -> Tensor:
        """(N,) → (B, T), with zeros at the end of each bag."""
        longest = max(int(self._sizes.max()) if self._count else 0, 1)
        out = values.new_zeros((self._count, longest))
        out[self._bag, self._place] = values[self._start :].detach()
        self._contact.mark(out, self._layout)
        return out

    def padded_weights(self, values: Tensor) -> Tensor:
        if values.requires_grad:
            self._contact.refuse("per_sample_weights (N,) that want a gradient: pass bags as (B, T)")
        return self.padded(values)
