"""Constants that the batch was written into, and views of them from before: these still pass for constants."""

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
    """Memory of constants that the batch was written into."""

    def __init__(self) -> None:
        self._storages: dict[int, StorageWeakRef] = {}

    def __bool__(self) -> bool:
        return bool(self._storages)

    def add(self, target: Tensor) -> None:
        """The batch is in the memory of ``target`` from now on."""
        for place in [place for place, storage in self._storages.items() if storage.expired()]:
            del self._storages[place]
        storage = StorageWeakRef(target.untyped_storage())  # while it is held, no other storage has this number
        self._storages.setdefault(storage.cdata, storage)

    def are_read(self, func: Callable[..., Any], args: Any, kwargs: Any) -> bool:
        """Whether a call reads such memory by a tensor that is not known to have the batch in it."""
        read = (args[1:], kwargs) if func is Tensor.copy_ else (args, kwargs)
        return any(
            mark_of(value) is None and value.layout is torch.strided and storage_of(value) in self._storages
            for value in tensors_in(read)
        )


def stale_error(func: Any, module: str) -> LayoutError:
    """The error of a view that was made before the batch was written there."""
    return LayoutError(
        f"`{func.__name__}` in {module} reads a view of a constant tensor, made before numbers of the batch were "
        "written into that: whose sample is where in it is not known, and clipping would bound nothing. Make the view "
        "after writing, or compute a new tensor instead of writing in place."
    )
