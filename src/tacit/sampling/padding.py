"""Blank rows behind the rows of a batch, so that all batches are of one size."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn.utils.rnn import PackedSequence

from tacit.errors import SamplingError


@runtime_checkable
class IsNamedTuple(Protocol):
    """What all named tuples have."""

    _fields: tuple[str, ...]

    def _replace(self, **fields: Any) -> Any: ...


def pad(value: Any, rows: int, size: int, where: str) -> Any:
    """Pad every tensor of a batch with zeros behind its ``rows`` rows.

    Args:
        value: the batch: a tensor, or a container of such.
        rows: how many rows it has.
        size: how many it shall have.
        where: what it is called, for errors.

    Raises:
        SamplingError: a part of it has another first dimension, or is no tensor.
    """
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        if value.dim() == 0 or len(value) != rows:
            raise _refusal(where, f"a tensor of shape {tuple(value.shape)} for {rows} records")
        return torch.cat([value, value.new_zeros((size - rows, *value.shape[1:]))])
    if isinstance(value, Mapping):
        padded = {key: pad(part, rows, size, f"{where}[{key!r}]") for key, part in value.items()}
        if not isinstance(value, MutableMapping):
            return type(value)(padded)  # type: ignore[call-arg]
        clone = copy.copy(value)
        clone.update(padded)
        return clone
    if isinstance(value, (list, tuple)) and not isinstance(value, PackedSequence):
        parts = [pad(part, rows, size, f"{where}[{i}]") for i, part in enumerate(value)]
        if isinstance(value, IsNamedTuple):
            return value._replace(**dict(zip(value._fields, parts, strict=True)))
        return type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(
            value, **{name: pad(getattr(value, name), rows, size, f"{where}.{name}") for name in names}
        )
    raise _refusal(where, type(value).__name__)


def _refusal(where: str, what: str) -> SamplingError:
    return SamplingError(
        f"Batches are padded to one size, but {where} as collate_fn returns it is {what}, and it is not known what a "
        "blank row of it is. Let collate_fn return tensors with one row for each record, or use padding=False."
    )
