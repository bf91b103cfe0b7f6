"""Where the samples are in a loss before it is reduced.

A loss over rows that were paired wrongly (``(B, 1)`` against ``(B,)``, a batch against itself in another order) is a
number for the whole batch like any other. So a loss with a reduction is followed as it would be without: only what then
shows its samples is a sum or mean over them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.capture.families import Follower, right
from tacit.capture.marks import mark_of
from tacit.rules.registry import methods
from tacit.uses import Layout

_CLASSES = frozenset([F.cross_entropy, F.nll_loss])
_ROWS = frozenset(
    methods("cosine_embedding_loss triplet_margin_loss multi_margin_loss multilabel_margin_loss".split(), F)
)
_POINTWISE = frozenset(
    methods(
        "mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy kl_div binary_cross_entropy_with_logits "
        "poisson_nll_loss hinge_embedding_loss soft_margin_loss margin_ranking_loss".split(),
        F,
    )
)
_LABELS = F.multilabel_soft_margin_loss
_DIVIDED_BY_WEIGHTS = frozenset(methods("mse_loss l1_loss".split(), F))
LOSSES = _CLASSES | _ROWS | _POINTWISE | {F.gaussian_nll_loss, _LABELS}


def unreduced(function: Callable[..., Any], args: Any, kwargs: Any) -> Tensor | None:
    """Return a tensor without numbers that has the shape of a loss before its reduction, ``(N, ...)``.

    Returns:
        The tensor; None if the loss divides by something that all samples have a part in.
    """
    given = _given(function, args, kwargs)
    if function in _DIVIDED_BY_WEIGHTS and given.get("reduction", "mean") == "mean" and _is_marked(given.get("weight")):
        return None
    operands = [value for value in given.values() if isinstance(value, Tensor)]
    first = operands[0].shape
    if function in _CLASSES:
        shape = (*first[:1], *first[2:]) if len(first) > 1 else ()
    elif function in _ROWS:
        shape = tuple(first[:1]) if len(first) > 1 else ()
    elif function is F.gaussian_nll_loss:
        shape = tuple(torch.broadcast_shapes(first, operands[1].shape))
    else:
        shape = tuple(torch.broadcast_shapes(*(value.shape for value in operands)))
        shape = shape[:-1] if function is _LABELS else shape
    return torch.empty(shape, device="meta")


def averages(function: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Whether a loss is a mean, and not a sum."""
    return bool(_given(function, args, kwargs).get("reduction", "mean") != "sum")


def classes(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """Losses of (N, C, …) against (N, …), or against probabilities (N, C, …): one for each target."""
    given = _given(f, args, kwargs)
    scores, target = given["input"], given["target"]
    if source is target and target.dim() == scores.dim() - 1:
        return _fitting(layout, out)
    if (source is not scores and source is not target) or layout.dim == 1 or scores.dim() == 1:
        return None  # the classes, or their weights
    return _fitting(layout.at(layout.dim - (layout.dim > 1)), out)


def rows(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """Losses of rows (N, D) against others, or against targets (N,): one for each."""
    own = source is not _given(f, args, kwargs).get("weight")
    return _fitting(layout, out) if own and layout.dim == 0 else None


def gaussian(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """A variance without the last dimension stands for all of it."""
    given = _given(f, args, kwargs)
    if source is given["var"] and source.shape == given["input"].shape[:-1] and source.shape != given["input"].shape:
        return _fitting(layout, out)
    return right(f, source, layout, args, kwargs, out)


def labels(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    """Losses of (..., C) against as many labels, with a mean over the last dimension."""
    return _fitting(layout.at(layout.dim + out.dim() + 1 - source.dim()), out)


FOLLOWERS: dict[Callable[..., Any], Follower] = {
    **dict.fromkeys(_CLASSES, classes),
    **dict.fromkeys(_ROWS, rows),
    F.gaussian_nll_loss: gaussian,
    _LABELS: labels,
}


@lru_cache(maxsize=64)
def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _given(function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(_names(function), args, strict=False)) | dict(kwargs)


def _fitting(layout: Layout, out: Tensor) -> Layout | None:
    return layout if layout.fits(out.shape) else None


def _is_marked(value: object) -> bool:
    return mark_of(value) is not None
