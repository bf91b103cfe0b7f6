"""Derived parameters: tensors computed from parameters and constants alone, such as ``pos[:, :T]`` or ``w / w.norm()``.

Autograd builds their small graph as usual. Where they meet the batch a rule takes their per-sample gradient, which is
pulled back here to the parameters that they came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tacit.capture.passes import within_task
from tacit.capture.views import storage_of
from tacit.errors import PrivacyError, TacitError, UnseenError
from tacit.rules import Slot
from tacit.uses import Dense, Gather, Layout, Outer, Room, Routed, Use

_DERIVED = "_tacit_derived"
_MADE = "_tacit_made"
_OWN_NODES = ("CarrierBackward", "TieBackward", "InsideBackward")
_CHUNK_BYTES = 2**27


def note_derived(value: Tensor) -> None:
    """Remember that a tensor was seen to be computed from parameters and constants."""
    if value.requires_grad:
        setattr(value, _DERIVED, True)


def was_derived(value: Tensor) -> bool:
    """Whether a tensor was seen to be computed from parameters and constants."""
    return getattr(value, _DERIVED, False)


def note_made(value: Tensor) -> Tensor:
    """Remember that a tensor was made within a forward: if it wants a gradient, nobody will step it."""
    setattr(value, _MADE, True)
    return value


def was_made(value: Tensor) -> bool:
    return getattr(value, _MADE, False)


def is_derived(value: Tensor) -> bool:
    """Tell whether a tensor that requires a gradient depends on parameters and constants alone."""
    return value.is_leaf or was_derived(value) or not trace(value)[1]


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
    if of_the_batch and not was_derived(value):
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
    """Takes uses of something that is a part or a form of a parameter."""

    def __init__(self, source: Slot) -> None:
        self._source = source

    @property
    def room(self) -> Room:
        return self._source.room

    @property
    def deferred(self) -> bool:
        return self._source.deferred


class TransposedSlot(ViewSlot):
    """Takes uses of a matrix's transpose."""

    def record(self, use: Use) -> None:
        self._source.record(use.transposed())


class ReshapedSlot(ViewSlot):
    """Takes uses of a parameter in another shape."""

    def __init__(self, source: Slot, shape: torch.Size) -> None:
        super().__init__(source)
        self._shape = shape

    def record(self, use: Use) -> None:
        self._source.record(use.reshaped(self._shape))


class StackSlot(ViewSlot):
    """Takes uses of one matrix of a stack, such as one expert's."""

    def __init__(self, source: Slot, number: int, count: int) -> None:
        super().__init__(source)
        self._number = number
        self._count = count

    def record(self, use: Use) -> None:
        if isinstance(use, Outer) and len(use.shape) == 2:
            expert = torch.full(use.a.shape[:2], self._number, device=use.a.device)
            use = Routed(use.a, use.g, expert, self._count, flipped=use.flipped)
        else:
            use = use.reshaped(torch.Size((1, *use.shape))).placed(self._number, self._count)
        self._source.record(use)


class RowsSlot(ViewSlot):
    """Takes uses of a slice of a parameter's rows, such as one of three packed projections."""

    def __init__(self, source: Slot, first: int, rows: int) -> None:
        super().__init__(source)
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

    @property
    def room(self) -> Room:
        return self._leaves[0][1].room

    @property
    def deferred(self) -> bool:
        return any(slot.deferred for _, slot in self._leaves)

    def record_rows(self, g: Tensor, dim: int, layout: Layout) -> None:
        """Rows that were looked up by constant numbers, such as positions, are uses of the table itself."""
        ids = looked_up(self._value)
        if ids is None or dim != 0 or len(self._leaves) != 1 or layout.rows != len(ids):
            super().record_rows(g, dim, layout)
            return
        ((table, slot),) = self._leaves
        rows = layout.rows_of(g.reshape(len(ids), -1, g.shape[-1]))
        slot.record(Gather(layout.rows_of(ids.reshape(len(ids), -1, 1)).squeeze(2), rows, table.shape[0]))

    def record(self, use: Use) -> None:
        ids = looked_up(self._value)
        if ids is not None and isinstance(use, Dense) and len(self._leaves) == 1:
            ((table, slot),) = self._leaves
            rows = use.gradients.reshape(use.samples, -1, table.shape[1])
            slot.record(Gather(ids.reshape(1, -1).expand(use.samples, -1), rows, table.shape[0]))
            return
        dense = use.dense().to(self._value.dtype)
        leaves = [leaf for leaf, _ in self._leaves]
        if any(leaf.numel() and not leaf.untyped_storage().size() for leaf in leaves):
            raise PrivacyError(
                f"a tensor {tuple(self._value.shape)} computed from parameters of one module of a sharded model is "
                "used in another, in whose backward these parameters are freed. Shard the module that it comes from "
                "with fully_shard(module, reshard_after_forward=False), or shard both as one."
            )
        per_leaf = (pull_back_traced if self.deferred else pull_back)(self._value, leaves, dense)
        for (_, slot), gradient in zip(self._leaves, per_leaf, strict=True):
            if gradient is not None:
                slot.record(Dense(gradient))


def looked_up(value: Tensor) -> Tensor | None:
    """The numbers (N, …) by which rows of a leaf were looked up, if ``value`` is just that."""
    node: Any = value.grad_fn
    if node is None or node.name() != "EmbeddingBackward0" or node._saved_scale_grad_by_freq:
        return None
    padded = node._saved_padding_idx < 2**63  # without padding it is -1, read as if it had no sign
    source = node.next_functions[0][0]
    if padded or source is None or not source.name().endswith("AccumulateGrad"):
        return None
    ids: Tensor = node._saved_indices
    return ids


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


def pull_back_traced(value: Tensor, leaves: Sequence[Tensor], dense: Tensor) -> list[Tensor | None]:
    """The same, where the number of samples may be a symbol: all at once, by a vmap that takes symbols."""
    if len(leaves) == 1 and _is_view(value, leaves[0]):
        return [_scattered(value, leaves[0], dense)]
    one = _gradients(value, leaves, dense[0], batched=False)
    reached = [leaf for leaf, g in zip(leaves, one, strict=True) if g is not None]
    found = iter(torch.vmap(lambda g: tuple(_gradients(value, reached, g, batched=False)))(dense))
    return [None if g is None else next(found) for g in one]


def _is_view(value: Tensor, leaf: Tensor) -> bool:
    """Whether all numbers of ``value`` are numbers of ``leaf``, as they are."""
    same = storage_of(value) == storage_of(leaf)
    return same and value.dtype == leaf.dtype and leaf.is_contiguous() and not (value.is_neg() or value.is_conj())


def _scattered(value: Tensor, leaf: Tensor, dense: Tensor) -> Tensor:
    """Gradients of a view put where its numbers are in the leaf."""
    places = torch.arange(leaf.numel(), device=leaf.device)
    seen = places.as_strided(value.shape, value.stride(), int(value.storage_offset() - leaf.storage_offset()))
    rows = dense.new_zeros((dense.shape[0], leaf.numel()))
    rows = rows.index_add(1, seen.reshape(-1), dense.reshape(dense.shape[0], -1))
    return rows.view(dense.shape[0], *leaf.shape)


def _gradients(value: Tensor, leaves: Sequence[Tensor], g: Tensor, *, batched: bool) -> Sequence[Tensor | None]:
    with within_task():
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
