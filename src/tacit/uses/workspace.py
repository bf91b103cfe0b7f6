"""Memory for whole per-sample gradients, that is used again in the next step.

On a CPU fresh memory costs more than what is written into it: pages are mapped and cleared as they are first touched,
at 4 GB a second, where memory in use takes ten times as much. CUDA's allocator keeps its memory by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 2**18
"""Numbers from which on it is worth while: smaller blocks are kept by the C library."""

_ROOM = 1.25
"""Blocks are larger than asked for by this, as batches differ in size."""


class Workspace:
    """Blocks that are free. A block that is lent is not known here: if it never comes back, nothing is lost."""

    def __init__(self) -> None:
        self._free: dict[torch.dtype, list[Tensor]] = {}

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uninitialised memory of this shape, in the type and on the device of ``like``."""
        count = torch.Size(shape).numel()
        if like.device.type != "cpu" or count < _LEAST:
            return like.new_empty(shape)
        free = self._free.setdefault(like.dtype, [])
        fitting = [block for block in free if count <= len(block) <= 2 * count]
        if fitting:
            block = min(fitting, key=len)
            free[:] = [other for other in free if other is not block]
        else:
            if free:  # none fits, as batches have grown or shrunk: for each new block an old one goes
                free.pop(0)
            block = like.new_empty(int(count * _ROOM))
        return block[:count].view(shape)

    def give(self, value: Tensor) -> None:
        """Take back what was taken. Whoever gives it must be the last to hold it."""
        block = value._base
        if block is not None and block.dim() == 1 and block.device.type == "cpu" and len(block) >= _LEAST:
            self._free.setdefault(block.dtype, []).append(block)

    def clear(self) -> None:
        """Let go of all free blocks."""
        self._free.clear()


WORKSPACE = Workspace()
