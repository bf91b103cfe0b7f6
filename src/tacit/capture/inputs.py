"""What the arguments of an outermost forward say about the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tacit.capture.marks import map_tensors, mark_of
from tacit.errors import ConfigurationError
from tacit.uses import Layout


def _dim_of(value: Tensor, batch_dim: int) -> int | None:
    if value.dim() == 0:
        return None
    return batch_dim if value.dim() > batch_dim else 0


def batch_size(tensors: Sequence[Tensor], batch_dim: int) -> int | None:
    """Return the number of samples: the first input's size in the batch dimension that is not 1.

    Inputs of another size there, and of size 1, are constants to the engine (masks, shared position ids).

    Raises:
        ConfigurationError: an input is a nested tensor.
    """
    sizes = []
    for value in tensors:
        if value.is_nested:
            raise ConfigurationError(
                "a NestedTensor has no batch dimension whose rows can be followed. Pass a padded tensor and a mask."
            )
        mark = mark_of(value)
        if mark is not None and mark.layout is not None:
            return mark.layout.samples
        dim = _dim_of(value, batch_dim)
        if dim is not None:
            sizes.append(value.shape[dim])
    return next((size for size in sizes if size != 1), 1) if sizes else None


def layout_at_entry(value: Tensor, samples: int, batch_dim: int) -> Layout | None:
    dim = _dim_of(value, batch_dim)
    return Layout(samples, dim) if dim is not None and value.shape[dim] == samples else None


def one_sample(inputs: Any, batch_dim: int) -> Any:
    """Put one made-up sample of zeros into every empty input.

    Models' own reshapes fail on empty tensors; the clipping gives this sample the factor 0.
    """

    def fill(value: Tensor) -> Tensor:
        dim = _dim_of(value, batch_dim)
        if dim is None or value.shape[dim] != 0:
            return value
        shape = list(value.shape)
        shape[dim] = 1
        return torch.zeros(shape, dtype=value.dtype, device=value.device, requires_grad=value.requires_grad)

    return map_tensors(fill, inputs)


def empty_outputs(outputs: Any) -> Any:
    """Take the made-up sample out of the outputs, so that they match the empty targets."""

    def cut(value: Tensor) -> Tensor:
        mark = mark_of(value)
        return value if mark is None or mark.layout is None else value.narrow(mark.layout.dim, 0, 0)

    return map_tensors(cut, outputs)
