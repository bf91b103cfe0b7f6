"""Counting what autograd saves in a forward: without checkpointing, and with a checkpoint around each block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes that wait for the backward when a forward has ended.

    Attributes:
        outside: saved outside the repeated blocks: embeddings, the head, the loss.
        blocks: saved by each block.
        inputs: of the first input of each block, which is all that a checkpoint around it saves.
        largest: of the largest single tensor that was saved. Its gradient is as large.
        largest_in_block: the same within the blocks.
    """

    outside: int
    blocks: tuple[int, ...]
    inputs: tuple[int, ...]
    largest: int
    largest_in_block: int

    def waiting(self, *, checkpointing: bool) -> int:
        """Bytes that are saved when the backward begins."""
        return self.outside + sum(self.inputs if checkpointing else self.blocks)

    @property
    def one_block(self) -> int:
        """Bytes that one block saves, at most: what a checkpoint around it makes anew in the backward."""
        return max(self.blocks, default=0)


class SavedTensors:
    """Counts each storage once, where it is saved first. Parameters and buffers are not counted: they are there anyway.

    Args:
        model: the model whose forward will run.
        blocks: the repeated blocks in it.
    """

    def __init__(self, model: nn.Module, blocks: list[nn.Module]) -> None:
        self._blocks = blocks
        # Kept alive: another storage would get the identity of one that is gone.
        self._known: dict[int, torch.UntypedStorage] = {}
        for value in (*model.parameters(), *model.buffers()):
            self._note(value.untyped_storage())
        self._at: int | None = None
        self._outside = 0
        self._saved = [0] * len(blocks)
        self._inputs = [0] * len(blocks)
        self._largest = self._largest_in_block = 0

    def add(self, value: Tensor) -> None:
        """A tensor is saved."""
        storage = value.untyped_storage()
        if value.device.type != "meta" or not self._note(storage):
            return
        size = storage.nbytes()
        self._largest = max(self._largest, size)
        if self._at is None:
            self._outside += size
        else:
            self._saved[self._at] += size
            self._largest_in_block = max(self._largest_in_block, size)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count within."""
        handles = []
        for place, block in enumerate(self._blocks):
            handles.append(block.register_forward_pre_hook(self._entered(place)))
            handles.append(block.register_forward_hook(self._left))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, _same):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def found(self) -> Activations:
        """What was counted."""
        return Activations(
            self._outside, tuple(self._saved), tuple(self._inputs), self._largest, self._largest_in_block
        )

    def _note(self, storage: torch.UntypedStorage) -> bool:
        """Remember a storage; whether it was not known."""
        # torch has one Python object for each storage, as long as it lives. On "meta" they have no address.
        new = id(storage) not in self._known
        self._known[id(storage)] = storage
        return new

    def _pack(self, value: Tensor) -> Tensor:
        self.add(value)
        return value

    def _entered(self, place: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self._at = place
            if args and isinstance(args[0], Tensor):
                self._inputs[place] = args[0].nbytes

        return hook

    def _left(self, *_: Any) -> None:
        self._at = None


def not_counted() -> torch.autograd.graph.saved_tensors_hooks:
    """Within, what is saved is not counted: it stands in for another kernel."""
    return torch.autograd.graph.saved_tensors_hooks(_same, _same)


def repeated(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The list of blocks that most of a model's parameters are in, and its name; an empty list if there is none."""
    found: tuple[str, list[nn.Module]] = ("", [])
    most = 0
    for name, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) > 1:
            size = sum(p.numel() for p in part.parameters())
            if size > most:
                found, most = (name, list(part)), size
    return found


def _same(value: Tensor) -> Tensor:
    return value
