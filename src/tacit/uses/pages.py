"""Memory for whole per-sample gradients, in large pages where there are such.

They are by far the largest of what a clip needs, and needed for a part of a step only: kept from step to step, they
would lie beside the activations of the next forward. But fresh memory is mapped and cleared as it is first touched, on
Linux in pages of 4 KB at 2 GB a second; in large ones at 9, where memory in use takes 20. CUDA's allocator keeps its
memory by itself.
"""

from __future__ import annotations

import mmap
import sys

import torch
from torch import Tensor

LARGE_PAGE = 2**21
"""Bytes of a large page, on most systems; on others it is the size from which on large ones are tried."""


def fresh(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised memory of this shape, in the type and on the device of ``like``; it goes with its tensor."""
    count = torch.Size(shape).numel()
    size = count * like.element_size()
    # From two pages on there is a whole one within, wherever the memory begins.
    if sys.platform != "linux" or like.device.type != "cpu" or size < 2 * LARGE_PAGE:
        return like.new_empty(shape)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without large pages, or no memory: torch says that better
        return like.new_empty(shape)
    return torch.frombuffer(memory, dtype=like.dtype, count=count).view(shape)
