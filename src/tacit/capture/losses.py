"""Losses inside a forward whose mean couples the samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tacit.capture.marks import mark_of
from tacit.errors import MixingError

COUPLING = (F.cross_entropy, F.nll_loss)


def refuse_coupled_mean(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> None:
    """Refuse a mean over tokens, or by class weights, whose divisor depends on the other samples.

    Dividing by the number of tokens of the *batch* lets a long sample shrink the gradients of all others, before any
    of them is clipped. With as many tokens in every sample the divisor is B times a constant, and all is well.

    Raises:
        MixingError: samples differ in what they add to the divisor.
    """
    given = dict(zip(("input", "target", "weight", "size_average", "ignore_index"), args, strict=False)) | kwargs
    target = given["target"]
    if given.get("reduction", "mean") != "mean" or not isinstance(target, Tensor) or target.is_floating_point():
        return
    advice = (
        "Compute the loss per sample (reduction='none', then each sample's own mean), outside the model if need be; or "
        "use reduction='sum' with loss_reduction='sum'."
    )
    if given.get("weight") is not None:
        raise MixingError(f"`{func.__name__}` in {where} divides by the class weights of the whole batch. {advice}")
    mark = mark_of(target)
    if mark is None or mark.layout is None:
        return
    counted = mark.layout.split(target != given.get("ignore_index", -100)).reshape(mark.layout.samples, -1).sum(1)
    if bool((counted != counted[0]).any()):
        raise MixingError(
            f"`{func.__name__}` in {where} is a mean over all tokens of the batch, and samples have between "
            f"{int(counted.min())} and {int(counted.max())}: each sample's gradient would depend on the lengths of the "
            f"others. {advice}"
        )
