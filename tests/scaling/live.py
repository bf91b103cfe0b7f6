"""Bytes of tensors that are alive at once, counted as torch makes them: a peak that no allocator blurs."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts storages that calls put out, from their first sight until they are freed: one for each address.

    Attributes:
        now: bytes that are alive.
        peak: the most that were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._see(value.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage.data_ptr() or id(storage)
        if key in self._known:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[key] = weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        del self._known[key]

    def begin(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def ignore(self, *values: Tensor) -> None:
        """These were there before."""
        for value in values:
            self._known.setdefault(value.untyped_storage().data_ptr(), value)
