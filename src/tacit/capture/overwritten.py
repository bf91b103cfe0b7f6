"""Memory in which numbers of the batch are, and tensors that still pass for constants.

There are two ways to it: the batch is written into a constant, of which there are views from before; and a tensor is
made of the memory of another by a call that no torch-function mode sees (``nn.Parameter(statistic)``, ``x.set_(...)``,
a legacy constructor). Of the batch's own tensors those whose samples are lost are watched, not those with rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tacit.capture.marks import mark_of, tensors_in
from tacit.capture.views import storage_of
from tacit.errors import LayoutError


class Overwritten:
    """Memory of constants that the batch was written into, and of numbers whose samples are lost.

    Attributes:
        any: there is, or was, any.
    """

    def __init__(self) -> None:
        self.any = False  # asked of every call
        self._storages: dict[int, StorageWeakRef] = {}
        self._watched: dict[int, StorageWeakRef] = {}

    def watch(self, value: Tensor) -> None:
        """Numbers whose samples are lost are in the memory of ``value``; of a constant's view that is not said."""
        base = value._base
        if value.layout is not torch.strided or torch._C._functorch.is_functorch_wrapped_tensor(value):
            return
        if base is None or mark_of(base) is not None:
            self._hold(value, self._watched)

    def add(self, target: Tensor) -> None:
        """The batch is in the memory of ``target`` from now on."""
        self._hold(target, self._storages)

    def are_read(self, func: Callable[..., Any], args: Any, kwargs: Any, *, apart: bool) -> bool:
        """Whether a call reads such memory by a tensor that is not known to have the batch in it.

        Args:
            func: what is called.
            args: its arguments.
            kwargs: its keyword arguments.
            apart: a module runs on single samples, whose rows are in the batch's memory.
        """
        read = (args[1:], kwargs) if func is Tensor.copy_ else (args, kwargs)
        for value in tensors_in(read):
            if mark_of(value) is None and value.layout is torch.strided:
                storage = storage_of(value)
                if storage in self._storages or (not apart and storage in self._watched):
                    return True
        return False

    def _hold(self, value: Tensor, storages: dict[int, StorageWeakRef]) -> None:
        for place in [place for place, storage in storages.items() if storage.expired()]:
            del storages[place]
        storage = StorageWeakRef(value.untyped_storage())  # while it is held, no other storage has this number
        storages.setdefault(storage.cdata, storage)
        self.any = True


def stale_error(func: Any, module: str) -> LayoutError:
    """The error of a tensor that shares memory with the batch, and is not known to."""
    return LayoutError(
        f"`{func.__name__}` in {module} reads a tensor that came unseen to memory in which there are numbers of the "
        "batch: as a view of a constant, made before the batch was written there, or as nn.Parameter(statistic), by "
        "set_() or a legacy constructor. Whose sample is where in it is not known, and clipping would bound nothing. "
        "Make the view after writing, or compute a new tensor."
    )
