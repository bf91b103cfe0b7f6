"""Marks: which tensors depend on the batch, and where their samples are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from tacit.uses import Layout

_MARK = "_tacit_mark"
_PLAIN = frozenset([bool, int, float, str, type(None), torch.Size, torch.dtype, torch.device])


@dataclass(frozen=True, slots=True)
class Mark:
    """Says that a tensor depends on the batch.

    Attributes:
        layout: where the samples are; None if that was lost (``lost`` says where) or there is no such
            dimension, as in a loss.
        lost: the call after which the layout was no longer known.
        mixed: that call paired operands whose batch dimensions disagree, and so samples with each other.
        reduced: that call summed over several samples.
        pointer: its numbers are numbers of rows: as an index they point to rows of the same samples, but what they are
            as numbers depends on the other samples.
    """

    layout: Layout | None
    lost: str = ""
    mixed: bool = False
    reduced: bool = False
    pointer: bool = False


def mark_of(value: object) -> Mark | None:
    return getattr(value, _MARK, None)


def set_mark(value: Tensor, mark: Mark) -> None:
    setattr(value, _MARK, mark)


def keep_mark(before: Tensor, after: Tensor) -> Tensor:
    """Return ``after``, marked as ``before`` is."""
    mark = mark_of(before)
    if mark is not None:
        set_mark(after, mark)
    return after


def clear_mark(value: Tensor) -> None:
    if mark_of(value) is not None:
        delattr(value, _MARK)


def tensors_in(value: object) -> list[Tensor]:
    """Return the tensors in nested lists, tuples, mappings and dataclasses, in order."""
    found: list[Tensor] = []
    _collect(value, found)
    return found


def _collect(value: object, found: list[Tensor]) -> None:
    # Asked of all arguments of every module and call: so what is common comes first, and there are no generators.
    if isinstance(value, Tensor):
        found.append(value)
    elif type(value) in _PLAIN:
        return
    elif isinstance(value, (list, tuple)):
        for item in value:
            if type(item) is Tensor:
                found.append(item)
            else:
                _collect(item, found)
    elif type(value) is dict and not value:
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            _collect(item, found)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            _collect(getattr(value, field.name), found)


def tensors_in_index(index: object) -> list[Tensor]:
    """Return the tensors in the index of ``x[index]``, also those that are bounds of slices."""
    if isinstance(index, slice):
        return tensors_in((index.start, index.stop, index.step))
    if isinstance(index, (tuple, list)):
        return [value for item in index for value in tensors_in_index(item)]
    return tensors_in(index)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Rebuild nested containers with ``function`` applied to every tensor. Other objects stay as they are."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if getattr(type(value), "_fields", None) else type(value)(items)
    if isinstance(value, MutableMapping):
        changed = copy.copy(value)
        for key, item in value.items():
            changed[key] = map_tensors(function, item)
        return changed
    if is_dataclass(value) and not isinstance(value, type):
        rebuilt = copy.copy(value)
        for field in fields(value):
            object.__setattr__(rebuilt, field.name, map_tensors(function, getattr(value, field.name)))
        return rebuilt
    return value
