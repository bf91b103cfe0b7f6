"""Views of parameters: a transpose, a slice, another shape records its uses in the parameter itself.

Pulling a dense per-sample gradient back through a view would be right, and a waste.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.rules.registry import methods

_VIEW = "_tacit_view"
_TRANSPOSES = frozenset([*methods(["t"], torch, Tensor), Tensor.T.__get__, Tensor.mT.__get__])  # type: ignore[attr-defined]
_SWAPS = frozenset(methods(["transpose", "swapaxes", "swapdims"], torch, Tensor))
_SLICES = frozenset(
    methods(
        "chunk unsafe_chunk split unsafe_split split_with_sizes tensor_split narrow __getitem__".split(), torch, Tensor
    )
)
_RESHAPES = frozenset(methods("view reshape flatten unflatten squeeze unsqueeze ravel".split(), torch, Tensor))
_EXPANSIONS = frozenset(methods(["expand", "expand_as", "broadcast_to", "repeat", "tile"], torch, Tensor))


def note_view(function: Callable[..., Any], args: tuple[Any, ...], out: Any) -> None:
    """Remember how a derived parameter is a plain view of another: its uses are then that one's uses."""
    if not args or not isinstance(args[0], Tensor):
        return
    source = args[0]
    for part in out if isinstance(out, (list, tuple)) else (out,):
        kind = _kind(function, args, source, part) if isinstance(part, Tensor) else None
        if kind is not None:
            _note(part, kind, source)


def _kind(function: Callable[..., Any], args: tuple[Any, ...], source: Tensor, out: Tensor) -> str | None:
    same = storage_of(out) == storage_of(source) and out.storage_offset() == source.storage_offset()
    if function in _EXPANSIONS:
        return "expand"
    if function in _RESHAPES:
        return "reshape" if same and source.is_contiguous() and out.is_contiguous() else None
    if function in _TRANSPOSES or function in _SWAPS:
        swapped = out.shape == (*source.shape[:-2], source.shape[-1], source.shape[-2]) if source.dim() > 1 else False
        plain = source.dim() == 2 or (source.dim() == 3 and function in _SWAPS and out.stride(0) == source.stride(0))
        return "transpose" if swapped and plain and same and out.stride() != source.stride() else None
    if function in _SLICES and out.dim() == source.dim():
        return "rows" if _first_row(out, source) is not None else None
    if function is Tensor.__getitem__ and source.dim() == 3 and isinstance(args[1], int):
        return "one"
    return None


def _first_row(part: Any, source: Tensor) -> int | None:
    """Where the rows of ``part`` begin in ``source``, if it is a slice of it along dimension 0."""
    if not isinstance(part, Tensor) or part.dim() != source.dim() or source.dim() == 0:
        return None
    if part.shape[1:] != source.shape[1:] or part.stride() != source.stride() or not source.stride(0):
        return None
    if storage_of(part) != storage_of(source):
        return None
    first, rest = divmod(int(part.storage_offset() - source.storage_offset()), source.stride(0))
    return first if not rest and 0 <= first <= source.shape[0] - part.shape[0] else None


def storage_of(value: Tensor) -> int:
    """Which storage a tensor is in; in a trace it has an identity, too, but no address."""
    return int(value.untyped_storage()._cdata)


def _note(out: Tensor, kind: str, source: Tensor) -> None:
    setattr(out, _VIEW, (kind, source, out._version, source._version))


def _noted(value: Tensor, kind: str) -> Tensor | None:
    """Return the tensor that ``value`` is such a view of, unless either was written to since."""
    found, source, version, source_version = getattr(value, _VIEW, ("", None, 0, 0))
    if found != kind or source is None or value._version != version or source._version != source_version:
        return None
    return source  # type: ignore[no-any-return]


def embed_once(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Look up constant ids that were expanded over the batch once, and expand the result instead."""
    if function is not F.embedding or not args or not isinstance(args[0], Tensor):
        return None
    ids = args[0]
    if ids.dim() < 2 or ids.shape[0] < 2 or ids.stride(0) != 0:
        return None
    once: Tensor = function(ids[:1], *args[1:], **kwargs)
    expanded = once.expand(ids.shape[0], *once.shape[1:])
    _note(expanded, "expand", once)
    return expanded


def before_expansion(value: Tensor, dim: int) -> Tensor:
    """Return what ``value`` was before it was expanded along ``dim``, with size 1 there; else ``value``."""
    source = _noted(value, "expand")
    if source is None or source.dim() > value.dim():
        return value
    padded = (1,) * (value.dim() - source.dim()) + tuple(source.shape)
    same = all(a == b or a == 1 for a, b in zip(padded, value.shape, strict=True))
    if not same or padded[dim] != 1:
        return value
    target = [1 if i == dim else size for i, size in enumerate(value.shape)]
    if tuple(target) == tuple(source.shape):
        return source
    shaped: Tensor = source.reshape(padded).expand(target)
    return shaped


def rows_source(value: Tensor) -> tuple[Tensor, int] | None:
    """Return the tensor of which ``value`` is a slice along dimension 0, and where it begins."""
    source = _noted(value, "rows")
    first = None if source is None else _first_row(value, source)
    return None if source is None or first is None else (source, first)


def reshaped_source(value: Tensor) -> Tensor | None:
    return _noted(value, "reshape")


def stack_source(value: Tensor) -> tuple[Tensor, int] | None:
    """Return the stack of matrices of which ``value`` is one, and its number."""
    source = _noted(value, "one")
    if source is None or not source.stride(0):
        return None
    return source, int(value.storage_offset() - source.storage_offset()) // source.stride(0)


def transposed_source(value: Tensor) -> Tensor | None:
    return _noted(value, "transpose")
