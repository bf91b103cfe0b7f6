"""Memory for large tensors that live for a part of a step."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

LARGE = 2**22
"""From so many bytes. Below, the C library reuses what it has."""


def scratch(shape: Sequence[int], like: Tensor) -> Tensor:
    """A contiguous tensor with any numbers in it, of the type and on the device of another.

    On Linux large ones get memory of their own, in pages of 2 MiB where the system has these for who asks: in pages of
    4 KiB to map them anew, as whole gradients are in each step, takes as long as to form what they hold. The system has
    them back with the tensor, where the C library might keep them.
    """
    size = prod(shape) * like.element_size()
    if size >= LARGE and like.device.type == "cpu" and _ADVICE is not None:
        try:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(_ADVICE)
        except OSError:  # a limit on mappings, or no such pages
            return like.new_empty(shape)
        return torch.frombuffer(memory, dtype=like.dtype).view(shape)
    return like.new_empty(shape)


_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)  # of Linux only
