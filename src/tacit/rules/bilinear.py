"""Bilinear layers and PReLU, written in calls that have rules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.rules.contact import Contact
from tacit.rules.registry import methods, rule_for


@rule_for(F.bilinear, always=True)
def bilinear(contact: Contact, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y_p = x₁ᵀ W_p x₂ + bias_p``: a linear layer on all products of the inputs' features."""
    call = contact.call
    products = call(torch.mul, call(torch.unsqueeze, input1, -1), call(torch.unsqueeze, input2, -2))
    return call(F.linear, call(torch.flatten, products, -2), call(torch.flatten, weight, 1), bias)  # type: ignore[no-any-return]


@rule_for(*methods(["prelu"], F, torch, Tensor))
def prelu(contact: Contact, input: Tensor, weight: Tensor) -> Tensor:
    """``x`` where positive, else ``weight · x``, with one weight for all or for each channel (dimension 1)."""
    call = contact.call
    if weight.numel() > 1 and input.dim() > 1:
        weight = call(torch.reshape, weight, (-1, *[1] * (input.dim() - 2)))
    elif weight.dim() == 1 and input.dim() == 0:
        weight = call(torch.reshape, weight, ())
    return call(torch.where, call(torch.gt, input, 0), input, call(torch.mul, input, weight))  # type: ignore[no-any-return]
