"""Plain SGD's step, taken along with the noise: what is released is in the processor's cache then."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
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

    def fused(self, released: Tensor, part: slice) -> None:
        """The same by Numba: it costs less to call, and shares nothing among torch's threads."""
        if moves_as_torch(released.dtype):
            _by_numba(self.weights[part], released, self.rate)
        else:
            self(released, part)


@cache
def moves_as_torch(dtype: torch.dtype) -> bool:
    """Whether Numba's moves round as torch's. Either may round a product before it is added, or not: by processor."""
    drawn = torch.randn((2, 1001), generator=torch.Generator().manual_seed(0), dtype=dtype)
    found, released = drawn
    weights = found.clone()
    _by_numba(found, released, 0.1)
    return torch.equal(found, weights.add_(released, alpha=-0.1))


def _by_numba(weights: Tensor, released: Tensor, rate: float) -> None:
    from tacit.mechanisms.fused_kernel import move

    array = weights.numpy()
    move(array, released.numpy(), array.dtype.type(-rate))
