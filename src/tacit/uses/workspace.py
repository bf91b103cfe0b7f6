"""Memory for whole gradients, which is kept from one backward to the next where the system would map it anew."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from math import prod
from mmap import PAGESIZE

import numpy as np
import torch
from torch import Tensor

try:
    from resource import RUSAGE_SELF, getrusage
except ImportError:  # there is none on Windows
    getrusage = None  # type: ignore[assignment]

LEAST = 2**18
"""Smaller tensors are left to the C library, which keeps what it needs for them anyway."""

PATIENCE = 4
"""After so many backwards in a row whose memory was mapped anew it is kept. In the first ones it always is."""

_ALIGNED = 64

Fill = Callable[[Tensor], object]
"""Writes all of a tensor."""


def mapped_pages() -> int:
    """How many pages the system has mapped for this process so far."""
    return 0 if getrusage is None else getrusage(RUSAGE_SELF).ru_minflt


class Workspace:
    """Hands out tensors on the CPU.

    The C library gives back to the system what is free at the end of a step; to have it mapped and cleared again in the
    next backward can take longer than what is computed there. Kept memory lies beside the activations of the next
    forward, so that it is kept only where that happens: where activations leave enough, nothing is.

    A part of kept memory is handed out again only when no tensor that lies in it is left, however it was made from the
    one that was handed out: each part is an array of its own, which torch lets go of with the last of them.

    Args:
        pages: counts the pages that were mapped so far.

    Attributes:
        size: bytes that are kept.
    """

    def __init__(self, pages: Callable[[], int] = mapped_pages) -> None:
        self.size = 0
        self._pages = pages
        self._block = _bytes(0)
        self._out: set[int] = set()  # changed by whoever lets go of the last tensor, in any thread
        self._number = 0
        self._turn = threading.Lock()
        self._offset = 0  # behind what was handed out since all was free
        self._begun = 0  # where it was when this backward began: what is held for long must not add up
        self._most = 0
        self._formed, self._mapped, self._streak = 0, 0, 0

    def begin(self) -> None:
        """A backward begins: keep what the ones before have shown to be of use."""
        if self._formed:
            self._streak = self._streak + 1 if 4 * self._mapped * PAGESIZE >= self._formed else 0
        self._formed = self._mapped = 0
        with self._turn:
            most, self._most, self._begun = self._most, 0, self._offset
            if not self._out and most > self.size and (self.size or self._streak >= PATIENCE):
                self.size, self._block = 0, _bytes(0)  # the old one goes before the new one comes
                self._block = _bytes(most + most // 8)  # batches differ in size
                self.size = self._block.nbytes

    def filled(self, shape: tuple[int, ...], dtype: torch.dtype, fill: Fill) -> Tensor:
        """A tensor that ``fill`` has written."""
        size = prod(shape) * dtype.itemsize
        if size < LEAST:
            out = torch.empty(shape, dtype=dtype, device="cpu")
            fill(out)
            return out
        before = self._pages()
        out = self._part(torch.Size(shape), dtype, size)
        fill(out)
        self._formed += size
        self._mapped += self._pages() - before
        return out

    def _part(self, shape: torch.Size, dtype: torch.dtype, size: int) -> Tensor:
        with self._turn:
            if not self._out:
                self._offset = self._begun = 0
            start, stop = self._offset, self._offset + size
            self._offset = -(-stop // _ALIGNED) * _ALIGNED
            self._most = max(self._most, self._offset - self._begun)
            fits = stop <= self.size
            part = self._block[start:stop] if fits else _bytes(size)
            self._number += 1
            self._out.add(self._number)
            weakref.finalize(part, self._out.discard, self._number).atexit = False
        return torch.from_numpy(part).view(dtype).view(shape)


def _bytes(size: int) -> np.ndarray:
    """An array in memory of torch's."""
    return torch.empty(size, dtype=torch.uint8).numpy()
