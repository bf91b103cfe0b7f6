"""Normalization layers: the statistics are the sample's own, the affine gradients are small and kept dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.errors import MixingError
from tacit.rules.contact import (
    SENTINEL,
    Contact,
    RuleFunction,
    Slot,
    autocasts,
    detached,
    in_own_types,
    refuse_double_backward,
)
from tacit.rules.registry import rule_for
from tacit.uses import Dense, Layout


class LayerNormFunction(RuleFunction):
    """``y = (x − mean) / std · weight + bias`` over the last dimensions."""

    @staticmethod
    def forward(
        ctx: Any,
        carrier: Tensor,
        x: Tensor,
        shape: list[int],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        layout: Layout,
        weight_slot: Slot | None,
        bias_slot: Slot | None,
    ) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(SENTINEL, x, weight, bias, mean, rstd)
        ctx.settings = shape, layout, weight_slot, bias_slot
        return y

    @staticmethod
    @in_own_types
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        refuse_double_backward()
        _, x, weight, bias, mean, rstd = ctx.saved_tensors
        shape, layout, weight_slot, bias_slot = ctx.settings
        features = len(shape)
        if weight_slot is not None:
            products = x.sub(mean).mul_(rstd).mul_(g)
            weight_slot.record(Dense(layout.totals(products, features)))
        if bias_slot is not None:
            bias_slot.record(Dense(layout.totals(g, features)))
        gradient = None
        if ctx.needs_input_grad[1]:
            gradient = torch.ops.aten.native_layer_norm_backward(
                g, x, shape, mean, rstd, weight, bias, [True, False, False]
            )[0]
        return None, gradient, *[None] * 7


@rule_for(F.layer_norm, torch.layer_norm)
def layer_norm(
    contact: Contact,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001  part of torch.layer_norm's signature
) -> Tensor:
    layout = contact.batch_layout(input, features=len(normalized_shape))
    mixed = {value.dtype for value in (input, weight, bias) if value is not None}
    if len(mixed) > 1 or autocasts(input.device):
        plain = contact.call(F.layer_norm, input, normalized_shape, None, None, eps)
        return affine(contact, plain, weight, bias)
    y: Tensor = LayerNormFunction.apply(
        contact.carrier,
        input,
        list(normalized_shape),
        detached(weight),
        detached(bias),
        eps,
        layout,
        contact.slot(weight),
        contact.slot(bias),
    )
    return y


@rule_for(F.rms_norm, *([torch.rms_norm] if F.rms_norm is not torch.rms_norm else []))
def rms_norm(
    contact: Contact,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    contact.batch_layout(input, features=len(normalized_shape))
    plain = contact.call(F.rms_norm, input, normalized_shape, None, eps)
    return affine(contact, plain, weight, None)


class GroupNormFunction(RuleFunction):
    """Normalization over groups of channels of each row of ``x`` (N, C, *)."""

    @staticmethod
    def forward(
        ctx: Any,
        carrier: Tensor,
        x: Tensor,
        groups: int,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        layout: Layout,
        weight_slot: Slot | None,
        bias_slot: Slot | None,
    ) -> Tensor:
        x = x.contiguous()
        size, channels = x.shape[:2]
        area = _area(x)
        y, mean, rstd = torch.native_group_norm(x, weight, bias, size, channels, area, groups, eps)
        ctx.save_for_backward(SENTINEL, x, weight, mean, rstd)
        ctx.settings = groups, layout, weight_slot, bias_slot
        return y

    @staticmethod
    @in_own_types
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        refuse_double_backward()
        _, x, weight, mean, rstd = ctx.saved_tensors
        groups, layout, weight_slot, bias_slot = ctx.settings
        size, channels = x.shape[:2]
        deferred = (weight_slot is not None and weight_slot.deferred) or (bias_slot is not None and bias_slot.deferred)
        if deferred:
            return _group_norm_gradients(g, x, weight, mean, rstd, ctx)
        # Rows folded into channels: one native call gives the input gradient and each row's affine gradients.
        folded = weight.expand(size, channels).reshape(-1) if weight is not None else None
        wanted = [ctx.needs_input_grad[1], weight_slot is not None, bias_slot is not None]
        gradients = torch.ops.aten.native_group_norm_backward(
            g.contiguous().view(1, size * channels, -1),
            x.view(1, size * channels, -1),
            mean.view(1, -1),
            rstd.view(1, -1),
            folded,
            1,
            size * channels,
            _area(x),
            size * groups,
            wanted,
        )
        for slot, gradient in zip((weight_slot, bias_slot), gradients[1:], strict=True):
            if slot is not None:
                slot.record(Dense(layout.totals(gradient.view(size, channels))))
        return None, gradients[0].view(x.shape) if wanted[0] else None, *[None] * 7


def _area(x: Tensor) -> int:
    """How many numbers each channel (N, C, *) has."""
    return x.numel() // max(1, x.shape[0] * x.shape[1])


def _group_norm_gradients(
    g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, ctx: Any
) -> tuple[Any, ...]:
    """The same in plain calls, for a graph: the number of groups of the native one must not depend on the batch."""
    groups, layout, weight_slot, bias_slot = ctx.settings
    size, channels = x.shape[:2]
    if weight_slot is not None:
        apart = x.view(size, groups, -1)
        products = ((apart - mean[..., None]) * rstd[..., None]).view_as(x) * g
        weight_slot.record(Dense(layout.totals(products.flatten(2).sum(2))))
    if bias_slot is not None:
        bias_slot.record(Dense(layout.totals(g.flatten(2).sum(2))))
    gradient = None
    if ctx.needs_input_grad[1]:
        area = _area(x)
        gradient = torch.ops.aten.native_group_norm_backward(
            g.contiguous(), x, mean, rstd, weight, size, channels, area, groups, [True, False, False]
        )[0]
    return None, gradient, *[None] * 7


@rule_for(F.group_norm, torch.group_norm)
def group_norm(
    contact: Contact,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: ARG001  part of torch.group_norm's signature
) -> Tensor:
    layout = contact.batch_layout(input, features=input.dim() - 1)
    mixed = {value.dtype for value in (input, weight, bias) if value is not None}
    if len(mixed) > 1 or weight is None or autocasts(input.device):
        plain = contact.call(F.group_norm, input, num_groups, None, None, eps)
        return affine(contact, plain, *_channelwise(contact, input, weight, bias))
    y: Tensor = GroupNormFunction.apply(
        contact.carrier,
        input,
        num_groups,
        detached(weight),
        detached(bias),
        eps,
        layout,
        contact.slot(weight),
        contact.slot(bias),
    )
    return y


@rule_for(F.instance_norm)
def instance_norm(
    contact: Contact,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    contact.batch_layout(input, features=input.dim() - 1)
    refuse_batch_statistics(contact.where(), running_mean if use_input_stats else None, training=False)
    plain = contact.call(F.instance_norm, input, running_mean, running_var, None, None, use_input_stats, momentum, eps)
    return affine(contact, plain, *_channelwise(contact, input, weight, bias))


@rule_for(F.batch_norm)
def batch_norm(
    contact: Contact,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalization with frozen statistics is an affine map; with the batch's own it is refused."""
    refuse_batch_statistics(contact.where(), None, training=training)
    plain = contact.call(F.batch_norm, input, running_mean, running_var, None, None, False, momentum, eps)
    return affine(contact, plain, *_channelwise(contact, input, weight, bias))


def refuse_batch_statistics(where: str, updated: Tensor | None, *, training: bool) -> None:
    """Refuse normalization by, or running averages of, statistics of the batch."""
    if training:
        raise MixingError(
            f"{where}: batch normalization in train mode normalizes each sample with the others of its batch, so no "
            "sample has a gradient of its own and clipping bounds nothing. Use GroupNorm or InstanceNorm, or put "
            "the layer in eval() mode with running statistics from public data."
        )
    if updated is not None:
        raise MixingError(
            f"{where}: track_running_stats=True writes averages of private samples into a buffer, without noise. "
            "Set track_running_stats=False."
        )


def affine(contact: Contact, plain: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``plain · weight + bias``, each where given, in the type of ``plain``."""
    if weight is not None:
        plain = contact.call(torch.mul, plain, weight)
    if bias is not None:
        plain = contact.call(torch.add, plain, bias)
    return plain


def _channelwise(contact: Contact, x: Tensor, *values: Tensor | None) -> list[Tensor | None]:
    """Shape per-channel parameters (C,) to (C, 1, …) so that they broadcast against (N, C, …)."""
    ones = [1] * (x.dim() - 2)
    return [v if v is None else contact.call(torch.reshape, v, (-1, *ones)) for v in values]
