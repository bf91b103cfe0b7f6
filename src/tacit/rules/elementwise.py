"""Every elementwise torch function, attention masks, and concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.rules.broadcast import batch_layout_of, broadcast, per_sample
from tacit.rules.contact import Contact
from tacit.rules.registry import methods, rule_for

_BINARY = (
    "add sub subtract mul multiply div divide true_divide rsub pow float_power maximum minimum fmax fmin hypot atan2 "
    "arctan2 logaddexp logaddexp2 copysign remainder fmod floor_divide xlogy where lerp addcmul addcdiv clamp "
    "clamp_min clamp_max clip"
).split()
_OPERATORS = (
    "__add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ __truediv__ __rtruediv__ "
    "__itruediv__ __div__ __rdiv__ __idiv__ __pow__ __rpow__ __ipow__ __mod__ __floordiv__ __rfloordiv__ "
    "add_ sub_ subtract_ mul_ multiply_ div_ divide_ true_divide_ pow_ lerp_ addcmul_ addcdiv_ clamp_ "
    "__lt__ __le__ __gt__ __ge__ __eq__ __ne__ lt le gt ge eq ne isclose"
).split()


@rule_for(*methods(_BINARY, torch, Tensor), *methods(_OPERATORS, Tensor))
def elementwise(contact: Contact, *args: Any, **kwargs: Any) -> Any:
    """Any call that combines its operands position by position."""
    name = contact.function.__name__
    in_place = (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
    if in_place and contact.layout(args[0]) is None:
        contact.refuse(f"`{name}` writes the batch into a parameter in place")
    return broadcast(contact, contact.function, args, kwargs)


@rule_for(torch.masked_fill, Tensor.masked_fill)
def masked_fill(contact: Contact, input: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    return contact.call(torch.where, mask, value, input)  # type: ignore[no-any-return]


@rule_for(*methods(["cosine_similarity", "pairwise_distance"], F, torch))
def compared(contact: Contact, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Rows of the batch compared with a parameter, along a dimension that is not the batch's."""
    return broadcast(contact, contact.function, (x1, x2, *args), kwargs)  # type: ignore[no-any-return]


@rule_for(torch.cdist)
def cdist(contact: Contact, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Distances of the batch's rows (B, T, d), or (B, d), from those of a parameter (K, d), or the other way round."""
    first = contact.layout(x1) is not None
    x = x1 if first else x2
    if x.dim() > 2:
        return broadcast(contact, contact.function, (x1, x2, *args), kwargs, trailing=2)  # type: ignore[no-any-return]
    x = contact.call(torch.unsqueeze, x, 1)
    apart = contact.call(torch.cdist, *((x, x2) if first else (x1, x)), *args, **kwargs)
    apart = contact.call(torch.squeeze, apart, 1 if first else 2)
    return apart if first else contact.call(torch.t, apart)  # type: ignore[no-any-return]


@rule_for(F.scaled_dot_product_attention)
def scaled_dot_product_attention(
    contact: Contact, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any
) -> Any:
    """Attention in which the mask (a learned bias), or the queries, are parameters."""
    return broadcast(contact, contact.function, (query, key, value, *args), kw, trailing=2)


@rule_for(*methods(("cat", "concat", "concatenate"), torch))
def cat(contact: Contact, tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """Concatenation of the batch with a parameter (class tokens, prompts) along another dimension."""
    dim = dim if axis is None else axis
    dims = tensors[0].dim()
    layout = batch_layout_of(contact, list(tensors), dims)
    if dim % dims == layout.dim:
        contact.refuse("a parameter is concatenated along the batch dimension")
    parts = [_whole(contact, part, layout, dims) for part in tensors]
    return torch.cat(parts, dim)


@rule_for(torch.stack)
def stack(contact: Contact, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    dims = tensors[0].dim()
    layout = batch_layout_of(contact, list(tensors), dims)
    return torch.stack([_whole(contact, part, layout, dims) for part in tensors], dim)


def _whole(contact: Contact, part: Tensor, layout: Any, dims: int) -> Tensor:
    """A part of a concatenation with the batch at full size: these calls do not broadcast."""
    if contact.slot(part) is None:
        return part
    part = per_sample(contact, part, layout, dims)
    shape = list(part.shape)
    shape[layout.dim] = layout.rows
    return part.expand(shape)
