"""Plain SGD's step, taken along with the noise: what is released is in the processor's cache then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Move:
    """``weights −= rate · released``, to the last bit as torch's SGD leaves them.

    Attributes:
        weights: one-dimensional, contiguous, of the type and on the device of what is released.
        rate: the learning rate.
    """

    weights: Tensor
    rate: float

    def __call__(self, released: Tensor, part: slice) -> None:
        """Move a part by what is released there."""
        self.weights[part].add_(released, alpha=-self.rate)

    def for_kernel(self, part: slice) -> tuple[Any, Any]:
        """What the kernel must be given to move a part."""
        weights = self.weights.numpy()[part]
        return weights, weights.dtype.type(-self.rate)
