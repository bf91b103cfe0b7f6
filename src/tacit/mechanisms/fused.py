"""What becomes of sums once there is noise for them: in passes of torch's, or in one of Numba's, where it is there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import FunctionType

import numpy as np
import torch
from torch import Tensor

from tacit.errors import ConfigurationError
from tacit.mechanisms.moving import Move

FROM = 2**17
"""Compiling takes a second: from so many numbers at once."""

_BROKEN = (OSError, AttributeError, TypeError, ValueError, RuntimeError, SystemError)
"""What importing Numba raises, besides ImportError, where its libraries or what it imports do not go with it."""

Kernel = Callable[..., None]
"""``release(words, values, deviation, into, back)``, of NumPy's arrays, and maybe of weights to be moved along; see
`fused_kernel.release`."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """Adds noise to sums, rounds to whole numbers and scales: ``round(values · into + noise) · back``.

    Attributes:
        values: one-dimensional, contiguous: the sums, which the results are written over.
        into: from the sums' unit to the noise's.
        back: from the noise's unit to the results'.
        move: weights to be moved by the results.
    """

    values: Tensor
    into: float
    back: float
    move: Move | None = None

    def __call__(self, numbers: Tensor, part: slice) -> None:
        """Use normal numbers, float64, which are overwritten, for a part."""
        numbers.add_(self.values[part], alpha=self.into).round_().mul_(self.back)
        self.values[part].copy_(numbers)
        if self.move is not None:
            self.move(self.values[part], part)

    def fused(self, kernel: Kernel, words: Tensor, part: slice, deviation: float) -> None:
        """The same with random words, as `secure.box_muller` takes, instead of numbers."""
        values, move = self.values[part], self.move
        along = move is not None and moves_as_torch(kernel, values.dtype)
        weights = move.for_kernel(part) if move is not None and along else ()
        kernel(words.numpy(), values.numpy(), deviation, self.into, self.back, *weights)
        if move is not None and not along:
            move(values, part)

    @property
    def can_be_fused(self) -> bool:
        return self.values.dtype in (torch.float32, torch.float64) and self.values.device.type == "cpu"


@cache
def kernel() -> Kernel | None:
    """The kernel, or None without Numba, with one that does not go with the other libraries here, or with
    ``NUMBA_DISABLE_JIT=1``: as plain Python it would take minutes for each step."""
    try:
        from tacit.mechanisms.fused_kernel import release
    except ImportError:
        return None
    except _BROKEN as error:
        warnings.warn(f"Numba cannot be imported ({error}), so noise is made without it.", UserWarning, stacklevel=2)
        return None
    found: object = release
    return None if isinstance(found, FunctionType) else release  # left as it was


@cache
def compiled() -> Kernel | None:
    """The kernel, compiled for float32: it takes a second or two, and 140 MB of memory.

    Raises:
        ConfigurationError: Numba cannot compile it.
    """
    found = kernel()
    if found is not None:
        try:
            found(np.zeros(2, dtype=np.int64), np.zeros(1, dtype=np.float32), 1.0, 1.0, 1.0)
        except Exception as error:
            raise ConfigurationError(
                f"Numba could not compile what makes the noise ({type(error).__name__}: {error}). Mend or remove it, "
                "or set NUMBA_DISABLE_JIT=1: torch then makes the noise."
            ) from error
    return found


@cache
def moves_as_torch(release: Kernel, dtype: torch.dtype) -> bool:
    """Whether the kernel moves weights to the same last bit as torch: either may round a product before adding it."""
    found, values = torch.randn((2, 1001), generator=torch.Generator().manual_seed(0), dtype=dtype, device="cpu")
    expected, whole, words = found.clone(), slice(None), np.zeros(1002, dtype=np.int64)
    release(words, values.numpy(), 1.0, 2.0**20, 2.0**-20, *Move(found, 0.1).for_kernel(whole))
    Move(expected, 0.1)(values, whole)
    return torch.equal(found, expected)


def maker() -> str:
    """What makes noise on the CPU, for processes that shall all make the same."""
    if kernel() is None:
        return "torch"
    from numba import __version__ as version

    return f"Numba {version}"
