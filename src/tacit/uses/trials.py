"""Timing the forms of a matrix product's use, on numbers that do not matter."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial

import torch

from tacit.uses.cost import Product
from tacit.uses.outer import Outer
from tacit.uses.tuning import TUNER, clip_with


def product_key(product: Product, device: torch.device, dtype: torch.dtype) -> Hashable:
    """Batches differ in size from step to step: those of similar size share a choice."""
    shared = product._replace(samples=product.samples.bit_length())
    return ("matrix product", tuple(shared), str(device), str(dtype), torch.get_num_threads())


def time_product(product: Product, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Milliseconds of each form; they are on record from then on.

    The Gram matrices are those of this use alone, also where they are shared.
    """
    key = product_key(product, device, dtype)
    if key not in TUNER.found:
        a = torch.ones((product.samples, product.positions, product.inputs), device=device, dtype=dtype)
        g = torch.ones((product.samples, product.positions, product.outputs), device=device, dtype=dtype)
        outer = Outer(a, g, torch.Size((product.outputs, product.inputs)))
        forms = outer.forms(product.asked)
        TUNER.measure(key, {name: partial(clip_with, form, device, product.asked) for name, form in forms.items()})
    return TUNER.found[key]
