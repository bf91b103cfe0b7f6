"""Norms and clipped sums in full float32, whatever precision the user has chosen for products.

With ``torch.set_float32_matmul_precision("medium")``, TF32 and their like, products round their factors: the norm of
what is summed would differ from the one that was bounded, by up to 2⁻⁸. What a model computes is the user's choice and
stays so; what a clip computes from it is not.
"""

from __future__ import annotations

from typing import Any

import torch

from tacit.uses.fast_matmul import is_trusted

_FULL = ("none", "ieee")


class FullPrecision:
    """A context, to be entered as often as one likes, in which products on a device are float32's own.

    Args:
        device: where the products are.
    """

    def __init__(self, device: torch.device) -> None:
        # torch's stubs know nothing of these.
        backends: Any = torch.backends
        places = (
            (backends.cuda.matmul, backends.cudnn.conv)
            if device.type == "cuda"
            else (backends.mkldnn.matmul, backends.mkldnn.conv)
        )
        before = [(place, place.fp32_precision) for place in places]
        self._lowered = [(place, value) for place, value in before if value not in _FULL and not is_trusted(value)]

    def __enter__(self) -> None:
        for place, _ in self._lowered:
            place.fp32_precision = "ieee"

    def __exit__(self, *_: object) -> None:
        for place, value in self._lowered:
            place.fp32_precision = value
