"""What the user asked torch.compile for, read from what dynamo calls for each frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

Backend = Callable[[GraphModule, list[Any]], Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class Settings:
    """What of a ``torch.compile`` matters here; ``dynamic`` is in force while it runs.

    Attributes:
        backend: what compiles graphs.
        fullgraph: whether running uncompiled is an error.
    """

    backend: Backend
    fullgraph: bool

    @classmethod
    def of(cls, callback: Any) -> Settings:
        """Read them from dynamo's callback: a chain of wrappers, with the backend last."""
        fullgraph, backend = False, callback
        while (inner := getattr(backend, "_torchdynamo_orig_backend", None)) is not None:
            fullgraph |= bool(getattr(backend, "_one_graph", False))
            backend = inner
        return cls(backend, fullgraph)


@cache
def _nothing() -> Callable[[Tensor], Tensor]:
    return torch.compile(lambda value: value + 1, backend="eager", fullgraph=True)


def count_as_compiled() -> None:
    """Run a graph of no importance: ``fullgraph=True`` demands that one ran, and a batch may better run without."""
    _nothing()(torch.zeros(2))
