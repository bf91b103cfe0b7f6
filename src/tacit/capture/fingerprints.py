"""Numbers that tell whether a gradient was changed in ways that leave no trace (``.data``, calls on lists)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tacit.distributed import local
from tacit.uses import segment_sums

Fingerprint = Tensor | float
"""A number on the gradient's device; of small gradients on a CPU, where asking for it waits for nothing, itself."""

_LARGE = 2**13
_BLOCK = 2**22
_SMALL = 2**12
"""So many numbers are added up in float64: alone or with others, they have the same norm to the last bits."""
_MANY = 12
"""From so many gradients on it is quicker to lay them side by side than to go from one to the next."""


def fingerprint(gradient: Tensor, *, times: float = 1.0) -> Tensor:
    """The norm of a gradient, or of a part of it; see :func:`looked_at`. Of a sharded one it is this process's shard.

    It is 0 only if the whole gradient is, as far as float32 can square its numbers (below 1e-23 it cannot).

    Args:
        gradient: the gradient.
        times: a number that it is multiplied by before it is looked at.
    """
    seen = local(gradient).detach()
    return _norm([seen.view(-1)], times) if seen.is_contiguous() else _strided_norm(seen, times)


def fingerprints(gradients: Sequence[Tensor], *, times: float = 1.0) -> list[Fingerprint]:
    """The fingerprint of each. Small ones are looked at together: by itself, each costs more in calls than in sums."""
    here = [local(value) for value in gradients]
    seen = [value.detach() if value.requires_grad else value for value in here]
    few = [place for place, value in enumerate(seen) if value.numel() <= _SMALL]
    if len(few) < 2 or len({(seen[place].device, seen[place].dtype) for place in few}) > 1:
        return [fingerprint(gradient, times=times) for gradient in gradients]
    found = dict(zip(few, _joint_norms([seen[place] for place in few], times), strict=True))
    return [found[place] if place in found else fingerprint(value, times=times) for place, value in enumerate(seen)]


def _joint_norms(values: list[Tensor], times: float) -> Sequence[Fingerprint]:
    if len(values) < _MANY and times == 1.0:
        each: Sequence[Tensor] = torch._foreach_norm(values, dtype=torch.float64)
        return each
    whole = torch._utils._flatten_dense_tensors(values).double()
    squares = (whole if times == 1.0 else whole * times).square()
    sums = segment_sums(squares, tuple([value.numel() for value in values])).sqrt_()
    norms: Sequence[Fingerprint] = sums.tolist() if sums.device.type == "cpu" else sums.unbind()
    return norms


def sum_fingerprint(parameter: Tensor, *parts: Tensor | None) -> Tensor:
    """The fingerprint that the sum of ``parts`` has as a gradient of ``parameter``, whatever strides they have."""
    there = [local(part).detach() for part in parts if part is not None]
    if local(parameter).is_contiguous():
        return _norm([part.reshape(-1) for part in there], 1.0)
    return fingerprint(sum(there[1:], there[0]))


def looked_at(*parts: Tensor) -> Sequence[Tensor]:
    """What is looked at of the sum of vectors, as vectors whose sum it is.

    Of large ones on a CPU it is some 2¹³ numbers, evenly spread: what scales or clips changes all. (All of an embedding
    of 50,000 rows would cost a tenth of its step.) If these are all 0, as they may be where most of a gradient is, they
    tell nothing, and all numbers are looked at. Other devices always look at all: to ask them first costs more.
    """
    seen = _spread(parts)
    return parts if seen is None or not bool(seen.any()) else [seen]


def _spread(parts: Sequence[Tensor]) -> Tensor | None:
    """Numbers of the sum, evenly spread; None if all of them are to be looked at."""
    first = parts[0]
    if first.numel() < 2 * _LARGE or first.device.type != "cpu":
        return None
    # An odd step comes past every column of a matrix whose rows have a power of two.
    step = first.numel() // _LARGE | 1
    return sum((part[::step] for part in parts[1:]), first[::step])


def first_difference(pairs: Sequence[tuple[str, Fingerprint, Fingerprint]]) -> str | None:
    """The first name whose fingerprint is not the one that is due; None if all are."""
    if not pairs:
        return None
    alike = are_alike([due for _, due, _ in pairs], [seen for *_, seen in pairs])
    return next((name for (name, *_), fine in zip(pairs, alike, strict=True) if not fine), None)


def are_alike(some: Sequence[Fingerprint], others: Sequence[Fingerprint]) -> list[bool]:
    """Which fingerprints are those of the same numbers, but for rounding. Two that are 0 are alike, and tell little."""
    found = numbers([*some, *others])  # a GPU is waited for once
    return [is_alike(a, b) for a, b in zip(found[: len(some)], found[len(some) :], strict=True)]


def is_alike(one: float, other: float) -> bool:
    """Whether the values of two fingerprints are those of the same numbers, but for rounding."""
    return one == other or (math.isnan(one) and math.isnan(other)) or abs(one - other) <= 1e-5 * abs(other) < math.inf


def numbers(prints: Sequence[Fingerprint]) -> list[float]:
    """The values of fingerprints, be they on several devices."""
    tensors = [one for one in prints if isinstance(one, Tensor)]
    if not tensors:
        return [float(one) for one in prints]
    device = tensors[0].device
    together = [one if one.device == device else one.to(device) for one in tensors]
    found = iter(torch.stack(together).double().tolist())
    return [next(found) if isinstance(one, Tensor) else one for one in prints]


def _norm(parts: Sequence[Tensor], times: float) -> Tensor:
    """The norm of a sum of vectors, in blocks: a large sum is never formed, and float32 adds up few numbers at once."""
    if parts[0].numel() <= _SMALL:
        return _strided_norm(sum(parts[1:], parts[0]), times)
    seen = _spread(parts)
    if seen is not None:
        norm = _strided_norm(seen, times)
        if bool(norm) or bool(seen.any()):  # or else as `looked_at` says
            return norm
    norms = [
        _strided_norm(sum(blocks[1:], blocks[0]), times)
        for blocks in zip(*(part.split(_BLOCK) for part in parts), strict=True)
    ]
    return norms[0] if len(norms) == 1 else _strided_norm(torch.stack(norms), 1.0)


def _strided_norm(value: Tensor, times: float) -> Tensor:
    few = value.numel() <= _SMALL
    working = torch.float64 if few else torch.promote_types(value.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(value if times == 1.0 else value * times, dtype=working)
    return norm
