"""Numbers for the whole batch, such as a mean loss: what may become of them.

A sum or mean over the samples may be added to others and scaled: each sample keeps a part of its own. Multiplied with
another, added to the rows of samples, or put through anything that is not linear, it makes every sample's gradient
depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.capture.marks import Mark, mark_of, tensors_in, tensors_in_index
from tacit.rules.registry import methods
from tacit.uses import Layout

_OWNERS = (torch, Tensor, F)
_SUMS = frozenset(methods("sum mean nansum nanmean".split(), *_OWNERS))
_NAN_MEANS = frozenset(methods(["nanmean"], *_OWNERS))
_LINEAR = frozenset(
    methods(
        "add sub subtract rsub neg negative sum mean stack cat to float double half bfloat16 type clone contiguous "
        "detach reshape view flatten squeeze unsqueeze expand __getitem__ __add__ __radd__ __iadd__ __sub__ "
        "__rsub__ __isub__ __neg__ add_ sub_ unbind view_as expand_as type_as".split(),
        *_OWNERS,
    )
)
_SCALED = frozenset(methods("mul multiply __mul__ __rmul__ __imul__ mul_".split(), *_OWNERS))
_DIVIDED = frozenset(methods("div divide true_divide __truediv__ __itruediv__ div_".split(), *_OWNERS))


def sums(function: Callable[..., Any]) -> bool:
    """Whether a call that has lost the batch has summed over it."""
    return function in _SUMS


def divides_by_choice(function: Callable[..., Any], layout: Layout) -> bool:
    """Whether a sum over the batch is divided by a number that samples decide: of their rows, say.

    A mean over the rows that a mask picks, or over those of packed sequences, lets a long sample shrink the gradients
    of all others before any of them is clipped. Where all samples have as many, it is the mean of their means.
    """
    return function in _NAN_MEANS or (function.__name__ == "mean" and uneven(layout))


def uneven(layout: Layout) -> bool:
    """Whether samples have different numbers of rows."""
    if layout.owner is None:
        return False
    counts = layout.owner.bincount(minlength=layout.samples)
    return not bool((counts == counts[0]).all())


def follow_reduced(function: Callable[..., Any], source: Tensor, mark: Mark, args: Any, kwargs: Any) -> Mark:
    """The mark of what becomes of a sum over the batch."""
    others = [value for value in tensors_in((args, kwargs)) if value is not source]
    marks = [mark_of(other) for other in others]
    rows = any(other and other.layout and other.layout.samples > 1 for other in marks)
    chosen = function is Tensor.__getitem__ and any(map(mark_of, tensors_in_index(args[1])))
    if function in _LINEAR and not chosen:
        return Mark(None, lost=mark.lost) if rows else mark
    alone = all(mark_of(value) is None for value in others) and sum(value is source for value in args) < 2
    if alone and (function in _SCALED or (function in _DIVIDED and args and args[0] is source)):
        return mark
    return Mark(None, lost=getattr(function, "__name__", str(function)), mixed=True)
