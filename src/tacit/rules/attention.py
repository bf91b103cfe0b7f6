"""``F.multi_head_attention_forward``, written in calls that have rules.

Everything is (T, N, E) here, whatever ``batch_first`` of the module: T positions, N samples, E features. Weights and
masks that the caller reads are (N, heads, T, S) or (N, T, S), S being the number of keys.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.rules.contact import Contact
from tacit.rules.registry import rule_for


class _Attention:
    """One call, step by step."""

    def __init__(self, contact: Contact, heads: int, samples: int) -> None:
        self.call = contact.call
        self.heads = heads
        self.samples = samples

    def project(
        self, query: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project by one packed weight (3E, E), in as few products as the operands allow."""
        size = query.shape[-1]
        if query is key and key is value:
            packed = self.call(F.linear, query, weight, bias)
            parts = self.call(torch.unbind, self.call(Tensor.unflatten, packed, -1, (3, size)), -2)
            return parts[0], parts[1], parts[2]
        weights = self.call(torch.chunk, weight, 3)
        biases = (None,) * 3 if bias is None else self.call(torch.chunk, bias, 3)
        operands = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (self.call(F.linear, x, w, b) for x, w, b in operands)
        return q, k, v

    def append(self, value: Tensor, parameter: Tensor) -> Tensor:
        """Append a parameter (1, 1, E) as one more key or value of every sample."""
        repeated = self.call(Tensor.repeat, parameter, 1, self.samples, 1)
        return self.call(torch.cat, [value, repeated])  # type: ignore[no-any-return]

    def by_head(self, value: Tensor) -> Tensor:
        """(T, N, E) → (N · heads, T, E / heads)."""
        length = value.shape[0]
        split = self.call(torch.reshape, value, (length, self.samples * self.heads, -1))
        return self.call(torch.transpose, split, 0, 1)  # type: ignore[no-any-return]

    def with_zero(self, value: Tensor) -> Tensor:
        zeros = torch.zeros((value.shape[0], 1, value.shape[2]), dtype=value.dtype, device=value.device)
        return self.call(torch.cat, [value, zeros], 1)  # type: ignore[no-any-return]

    def added(self, mask: Tensor | None, like: Tensor) -> Tensor | None:
        """A mask as numbers to add: −∞ where a boolean one hides."""
        if mask is None or mask.dtype != torch.bool:
            return mask
        hidden = torch.full((), -math.inf, dtype=like.dtype, device=like.device)
        return self.call(torch.where, mask, hidden, torch.zeros_like(hidden))  # type: ignore[no-any-return]

    def padded(self, mask: Tensor | None) -> Tensor | None:
        """One more key, which no mask hides."""
        return None if mask is None else self.call(F.pad, mask, (0, 1))

    def merged(self, mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Masks (T, S) or (N · heads, T, S), and (N, S), as one that broadcasts against (N · heads, T, S)."""
        if mask is not None and mask.dim() == 2:
            mask = self.call(torch.unsqueeze, mask, 0)
        if padding is None:
            return mask
        shape = (self.samples, 1, 1, padding.shape[-1])
        spread = self.call(Tensor.expand, self.call(torch.reshape, padding, shape), -1, self.heads, -1, -1)
        spread = self.call(torch.reshape, spread, (self.samples * self.heads, 1, padding.shape[-1]))
        return spread if mask is None else self.call(torch.add, mask, spread)  # type: ignore[no-any-return]

    def explicit(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
        """Return values (T, N, E) and weights (N, heads, T, S)."""
        scaled = self.call(torch.mul, q, math.sqrt(1.0 / q.shape[-1]))
        keys = self.call(torch.transpose, k, -2, -1)
        product, start = (torch.bmm, ()) if mask is None else (torch.baddbmm, (mask,))
        weights = self.call(product, *start, scaled, keys)
        weights = self.call(F.softmax, weights, dim=-1)
        if dropout > 0:
            weights = self.call(F.dropout, weights, p=dropout)
        out = self.call(torch.transpose, self.call(torch.bmm, weights, v), 0, 1)
        out = self.call(torch.reshape, out, (q.shape[1], self.samples, -1))
        return out, self.call(torch.reshape, weights, (self.samples, self.heads, q.shape[1], k.shape[1]))

    def fused(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool) -> Tensor:
        """Return values (T, N, E)."""
        length = q.shape[1]
        q, k, v = (self.call(Tensor.unflatten, value, 0, (self.samples, self.heads)) for value in (q, k, v))
        if mask is not None:
            whole = mask.shape[0] == 1
            sizes = (1, 1) if whole else (self.samples, self.heads)
            mask = self.call(torch.reshape, mask, (*sizes, -1, k.shape[-2]))
        out = self.call(F.scaled_dot_product_attention, q, k, v, mask, dropout, causal)
        out = self.call(torch.permute, out, (2, 0, 1, 3))
        return self.call(torch.reshape, out, (length, self.samples, -1))  # type: ignore[no-any-return]


@rule_for(F.multi_head_attention_forward, always=True)
def multi_head_attention(
    contact: Contact,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,  # noqa: ARG001  the products would fail by themselves
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    if query.dim() != 3:
        contact.refuse(f"a query {tuple(query.shape)} without a batch dimension")
    if is_causal and attn_mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    step = _Attention(contact, num_heads, query.shape[1])
    if use_separate_proj_weight:
        biases = (None,) * 3 if in_proj_bias is None else contact.call(torch.chunk, in_proj_bias, 3)
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
        operands = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (contact.call(F.linear, x, w, b) for x, w, b in operands)
    else:
        assert in_proj_weight is not None
        q, k, v = step.project(query, key, value, in_proj_weight, in_proj_bias)
    hint = is_causal and key_padding_mask is None and not need_weights
    mask = None if hint else step.added(attn_mask, q)
    padding = step.added(key_padding_mask, q)
    if bias_k is not None and bias_v is not None:
        k, v = step.append(k, bias_k), step.append(v, bias_v)
        mask, padding = step.padded(mask), step.padded(padding)
    q = step.by_head(q)
    k = step.by_head(k) if static_k is None else static_k
    v = step.by_head(v) if static_v is None else static_v
    if add_zero_attn:
        k, v = step.with_zero(k), step.with_zero(v)
        mask, padding = step.padded(mask), step.padded(padding)
    merged = step.merged(mask, padding)
    dropout = dropout_p if training else 0.0
    if not need_weights:
        out = step.fused(q, k, v, merged, dropout, hint)
        return contact.call(F.linear, out, out_proj_weight, out_proj_bias), None
    out, attended = step.explicit(q, k, v, merged, dropout)
    if average_attn_weights:
        attended = contact.call(torch.mean, attended, dim=1)
    return contact.call(F.linear, out, out_proj_weight, out_proj_bias), attended
