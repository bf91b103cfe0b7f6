"""Norms and clipped sums in full float32, whatever precision the user has chosen for products.

With ``torch.set_float32_matmul_precision("medium")``, TF32 and their like, or with a ``backward()`` inside an autocast
region, products round their factors: the norm of what is summed would differ from the one that was bounded, by up to
2⁻⁸. What a model computes is the user's choice and stays so; what a clip computes from it is not.
"""

from __future__ import annotations

from typing import Any

import torch

from tacit.uses.fast_matmul import is_trusted

_FULL = ("none", "ieee")
_HALF = (
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)
"""On a GPU, whether products of half-precision numbers may be summed in less than float32. Clips form products of
float32 only; these hold for any others."""


class FullPrecision:
    """A context, to be entered as often as one likes, in which products on a device are float32's own.

    Args:
        device: where the products are.

    Attributes:
        device: as given.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # torch's stubs know nothing of these.
        backends: Any = torch.backends
        cuda = device.type == "cuda"
        places = (backends.cuda.matmul, backends.cudnn.conv) if cuda else (backends.mkldnn.matmul, backends.mkldnn.conv)
        before = [(place, place.fp32_precision) for place in places]
        self._lowered: list[tuple[Any, str, Any, Any]] = [
            (place, "fp32_precision", value, "ieee")
            for place, value in before
            if value not in _FULL and not is_trusted(value)
        ]
        if cuda:
            matmul = backends.cuda.matmul
            self._lowered += [(matmul, name, True, False) for name in _HALF if getattr(matmul, name)]
        self._autocast = device.type if torch.is_autocast_enabled(device.type) else None

    def __enter__(self) -> None:
        for place, name, _, full in self._lowered:
            setattr(place, name, full)
        if self._autocast is not None:
            torch.set_autocast_enabled(self._autocast, False)

    def __exit__(self, *_: object) -> None:
        for place, name, value, _ in self._lowered:
            setattr(place, name, value)
        if self._autocast is not None:
            torch.set_autocast_enabled(self._autocast, True)
