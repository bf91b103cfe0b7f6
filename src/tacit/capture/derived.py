"""Derived parameters: tensors computed from parameters and constants alone, such as ``pos[:, :T]`` or ``w / w.norm()``.

Autograd builds their small graph as usual. Where they meet the batch a rule takes their per-sample gradient, which is
pulled back here to the parameters that they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.errors import PrivacyError, TacitError, UnseenError
from tacit.rules import Slot
from tacit.rules.registry import methods
from tacit.uses import Dense, Use

_VIEW = "_tacit_view"
_DERIVED = "_tacit_derived"
_TRANSPOSES = frozenset([*methods(["t"], torch, Tensor), Tensor.T.__get__, Tensor.mT.__get__])  # type: ignore[attr-defined]
_SWAPS = frozenset(methods(["transpose", "swapaxes", "swapdims"], torch, Tensor))
_SLICES = frozenset(
    methods(
        "chunk unsafe_chunk split unsafe_split split_with_sizes tensor_split narrow __getitem__".split(), torch, Tensor
    )
)
_RESHAPES = frozenset(methods("view reshape flatten unflatten squeeze unsqueeze ravel".split(), torch, Tensor))
_EXPANSIONS = frozenset(methods(["expand", "expand_as", "broadcast_to", "repeat", "tile"], torch, Tensor))
_OWN_NODES = ("CarrierBackward", "TieBackward")
_CHUNK_BYTES = 2**27


def note_view(function: Callable[..., Any], args: tuple[Any, ...], out: Any) -> None:
    """Remember how a derived parameter is a plain view of another: its uses are then that one's uses."""
    if not args or not isinstance(args[0], Tensor):
        return
    source = args[0]
    if function in _SLICES:
        for part in out if isinstance(out, (list, tuple)) else (out,):
            if _first_row(part, source) is not None:
                _note(part, "rows", source)
    elif not isinstance(out, Tensor):
        return
    elif function in _RESHAPES:
        if source.is_contiguous() and out.is_contiguous() and out.data_ptr() == source.data_ptr():
            _note(out, "reshape", source)
    elif source.dim() == 2 and (function in _TRANSPOSES or function in _SWAPS):
        if out.shape == source.shape[::-1] and out.data_ptr() == source.data_ptr() and out.stride() != source.stride():
            _note(out, "transpose", source)
    elif function in _EXPANSIONS:
        _note(out, "expand", source)


def _first_row(part: Any, source: Tensor) -> int | None:
    """Where the rows of ``part`` begin in ``source``, if it is a slice of it along dimension 0."""
    if not isinstance(part, Tensor) or part.dim() != source.dim() or source.dim() == 0:
        return None
    if part.shape[1:] != source.shape[1:] or part.stride() != source.stride() or not source.stride(0):
        return None
    if part.untyped_storage().data_ptr() != source.untyped_storage().data_ptr():
        return None
    first, rest = divmod(int(part.storage_offset() - source.storage_offset()), source.stride(0))
    return first if not rest and 0 <= first <= source.shape[0] - part.shape[0] else None


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
    shaped: Tensor = source.reshape(padded).expand(target)
    return shaped


def rows_source(value: Tensor) -> tuple[Tensor, int] | None:
    """Return the tensor of which ``value`` is a slice along dimension 0, and where it begins."""
    source = _noted(value, "rows")
    first = None if source is None else _first_row(value, source)
    return None if source is None or first is None else (source, first)


def reshaped_source(value: Tensor) -> Tensor | None:
    return _noted(value, "reshape")


def transposed_source(value: Tensor) -> Tensor | None:
    return _noted(value, "transpose")


def note_derived(value: Tensor) -> None:
    """Remember that a tensor was seen to be computed from parameters and constants."""
    if value.requires_grad:
        setattr(value, _DERIVED, True)


def is_derived(value: Tensor) -> bool:
    """Tell whether a tensor that requires a gradient depends on parameters and constants alone."""
    return value.is_leaf or getattr(value, _DERIVED, False) or not trace(value)[1]


def unseen_error(where: str = "a module") -> UnseenError:
    return UnseenError(
        f"a tensor in {where} may have been computed from the batch by a call that could not be seen (torch.vmap, "
        "torch.jit.script, an autograd.Function, a write into a view of a constant): its samples cannot be told apart, "
        "and parameters that it meets would be released unclipped. Write that call in plain torch, or as a function "
        "made by tacit.visible."
    )


def leaves_of(value: Tensor) -> list[Tensor]:
    """Return the leaf tensors that require a gradient and from which ``value`` was computed.

    Raises:
        UnseenError: it was computed from the batch, too.
    """
    leaves, of_the_batch = trace(value)
    if of_the_batch and not getattr(value, _DERIVED, False):
        raise unseen_error()
    return leaves


def trace(value: Tensor) -> tuple[list[Tensor], bool]:
    """Return the leaves of a tensor's graph, and whether it may depend on the batch.

    It does if a rule had a part in it, and may if an autograd.Function of the user's had: its calls are not seen.
    """
    if value.is_leaf:  # or a view of one, made under no_grad
        return ([value], False) if value._base is None else trace(value._base)
    found: dict[int, Tensor] = {}
    of_the_batch = False
    seen: set[Any] = set()
    pending = [value.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() in _OWN_NODES:
            of_the_batch = True
            continue
        of_the_batch |= isinstance(node, torch.autograd.function.BackwardCFunction)
        leaf = getattr(node, "variable", None) if node.name().endswith("AccumulateGrad") else None
        if leaf is not None:
            found[id(leaf)] = leaf
        pending.extend(edge[0] for edge in node.next_functions)
    return list(found.values()), of_the_batch


class ViewSlot(Slot):
    """Takes uses of a matrix's transpose."""

    def __init__(self, source: Slot) -> None:
        self._source = source

    def record(self, use: Use) -> None:
        self._source.record(use.transposed())


class ReshapedSlot(Slot):
    """Takes uses of a parameter in another shape."""

    def __init__(self, source: Slot, shape: torch.Size) -> None:
        self._source = source
        self._shape = shape

    def record(self, use: Use) -> None:
        self._source.record(use.reshaped(self._shape))


class RowsSlot(Slot):
    """Takes uses of a slice of a parameter's rows, such as one of three packed projections."""

    def __init__(self, source: Slot, first: int, rows: int) -> None:
        self._source = source
        self._first = first
        self._rows = rows

    def record(self, use: Use) -> None:
        self._source.record(use.placed(self._first, self._rows))


class DerivedSlot(Slot):
    """Takes uses of a derived parameter and passes their pullback on to its leaves.

    The pullback happens here, in the rule's backward: later the storage may be gone (sharded parameters).
    """

    def __init__(self, value: Tensor, leaves: Sequence[tuple[Tensor, Slot]]) -> None:
        self._value = value
        self._leaves = leaves

    def record(self, use: Use) -> None:
        dense = use.dense().to(self._value.dtype)
        per_leaf = pull_back(self._value, [leaf for leaf, _ in self._leaves], dense)
        for (_, slot), gradient in zip(self._leaves, per_leaf, strict=True):
            if gradient is not None:
                slot.record(Dense(gradient))


def pull_back(value: Tensor, leaves: Sequence[Tensor], dense: Tensor) -> list[Tensor | None]:
    """Per-sample gradients (B, *value.shape) of ``value`` → those of its leaves, (B, *leaf.shape) each.

    Batched over samples in chunks of bounded size; one sample at a time where a backward cannot be batched.
    """
    size = max(1, _CHUNK_BYTES // max(1, dense[0].numel() * dense.element_size()))
    chunks: list[Sequence[Tensor | None]] = []
    for part in dense.split(size):
        try:
            chunks.append(_gradients(value, leaves, part, batched=True))
        except TacitError:
            raise
        except RuntimeError:
            rows = [_gradients(value, leaves, row, batched=False) for row in part]
            chunks.append([_stacked(column) for column in zip(*rows, strict=True)])
    return [_concatenated(column) for column in zip(*chunks, strict=True)]


def _gradients(value: Tensor, leaves: Sequence[Tensor], g: Tensor, *, batched: bool) -> Sequence[Tensor | None]:
    return torch.autograd.grad(
        value, leaves, grad_outputs=g, is_grads_batched=batched, retain_graph=True, allow_unused=True
    )


def _stacked(column: Sequence[Tensor | None]) -> Tensor | None:
    present = [g for g in column if g is not None]
    return torch.stack(present) if present else None


def _concatenated(column: Sequence[Tensor | None]) -> Tensor | None:
    present = [g for g in column if g is not None]
    if not present:
        return None
    if len(present) != len(column):
        raise PrivacyError("a derived parameter reached its source for some samples only")
    return torch.cat(present)
