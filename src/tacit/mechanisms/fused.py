"""What becomes of sums once there is noise for them: in passes of torch's, or in one of Numba's, where it is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

FROM = 2**17
"""Compiling takes a second: from so many numbers at once."""

Kernel = Callable[[Any, Any, float, float, float], None]
"""``release(words, values, deviation, into, back)``, of NumPy's arrays; see `fused_kernel.release`."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """Adds noise to sums, rounds to whole numbers and scales: ``round(values · into + noise) · back``.

    Attributes:
        values: one-dimensional, contiguous: the sums, which the results are written over.
        into: from the sums' unit to the noise's.
        back: from the noise's unit to the results'.
    """

    values: Tensor
    into: float
    back: float

    def __call__(self, numbers: Tensor, part: slice) -> None:
        """Use normal numbers, float64, which are overwritten, for a part."""
        numbers.add_(self.values[part], alpha=self.into).round_().mul_(self.back)
        self.values[part].copy_(numbers)

    def fused(self, kernel: Kernel, words: Tensor, part: slice, deviation: float) -> None:
        """The same with random words, as `secure.box_muller` takes, instead of numbers."""
        kernel(words.numpy(), self.values[part].numpy(), deviation, self.into, self.back)

    @property
    def can_be_fused(self) -> bool:
        return self.values.dtype in (torch.float32, torch.float64) and self.values.device.type == "cpu"


@cache
def kernel() -> Kernel | None:
    """The kernel, or None without Numba, or with one that does not go with the other libraries here."""
    try:
        from tacit.mechanisms.fused_kernel import release
    except ImportError:
        return None
    return release


@cache
def compiled() -> Kernel | None:
    """The kernel, compiled for float32: it takes a second or two, and 140 MB of memory."""
    found = kernel()
    if found is not None:
        found(np.zeros(2, dtype=np.int64), np.zeros(1, dtype=np.float32), 1.0, 1.0, 1.0)
    return found


def maker() -> str:
    """What makes noise on the CPU, for processes that shall all make the same."""
    try:
        return f"Numba {version('numba')}" if kernel() else "torch"
    except PackageNotFoundError:
        return "torch"
