"""Losses inside a forward whose mean couples the samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tacit.capture.marks import mark_of
from tacit.errors import CoupledLossWarning, MixingError
from tacit.uses import Layout

COUPLING = (F.cross_entropy, F.nll_loss)
_NAMES = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction")


def uncoupled_mean(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], where: str, *, traced: bool = False
) -> Tensor | None:
    """Compute a mean over tokens as the mean over samples of each one's own mean, where the two differ.

    Dividing by the number of tokens of the *batch* lets a long sample shrink the gradients of all others, before any
    of them is clipped. With as many tokens in every sample the divisor is B times a constant, and all is well. A
    sample without tokens contributes nothing.

    Returns:
        The loss, or None if the call may run as it is.

    Raises:
        MixingError: class weights, by which torch divides for the whole batch.
    """
    given = dict(zip(_NAMES, args, strict=False)) | kwargs
    target = given["target"]
    if given.get("reduction", "mean") != "mean" or not isinstance(target, Tensor) or target.is_floating_point():
        return None
    if given.get("weight") is not None:
        raise MixingError(
            f"`{func.__name__}` in {where} divides by the class weights of the whole batch. Compute the loss per "
            "sample (reduction='none', then each sample's own mean), outside the model if need be; or use "
            "reduction='sum' with loss_reduction='sum'."
        )
    mark = mark_of(target)
    if mark is None or mark.layout is None:
        return None
    layout = mark.layout
    counted = layout.rows_of((target != given.get("ignore_index", -100)).unsqueeze(-1)).sum((1, 2))
    if traced:  # the numbers are not known: the mean of means is right in either case
        return _mean_of_means(func, given, layout, counted)
    if bool((counted == counted[0]).all()):
        return None
    warnings.warn(
        f"`{func.__name__}` in {where} is a mean over all tokens of the batch, and samples have between "
        f"{int(counted.min())} and {int(counted.max())}: each sample's gradient would depend on the lengths of the "
        "others. It is computed as the mean over samples of each one's own mean instead. To say so yourself, compute "
        "the loss per sample (reduction='none').",
        CoupledLossWarning,
        stacklevel=2,
    )
    return _mean_of_means(func, given, layout, counted)


def _mean_of_means(func: Callable[..., Any], given: Mapping[str, Any], layout: Layout, counted: Tensor) -> Tensor:
    settings = {name: value for name, value in given.items() if name not in ("size_average", "reduce")}
    losses = func(**settings | {"reduction": "none"})
    totals = layout.rows_of(losses.unsqueeze(-1)).sum((1, 2))
    mean: Tensor = (totals / counted.clamp(min=1)).mean()
    return mean


def refuse_batch_counts(kwargs: Mapping[str, Any], path: str) -> None:
    """Refuse the number of tokens of the whole batch, by which Hugging Face's losses then divide.

    Raises:
        MixingError: it is among the arguments.
    """
    if kwargs.get("num_items_in_batch") is not None:
        raise MixingError(
            f"{path} was given num_items_in_batch: its loss would be divided by the number of tokens of all samples, "
            "so that each sample's gradient depends on the lengths of the others. Leave it out; then the loss is a "
            "mean over samples of each one's own mean."
        )
