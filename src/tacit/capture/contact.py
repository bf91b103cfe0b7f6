"""The capture's side of a contact: tells rules where the samples are and takes what they record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tacit.capture.crossings import CrossingSlot, crossing_of
from tacit.capture.derived import DerivedSlot, ReshapedSlot, RowsSlot, StackSlot, TransposedSlot, leaves_of, was_made
from tacit.capture.entrance import Entrance
from tacit.capture.marks import Mark, mark_of, set_mark
from tacit.capture.passes import Pass
from tacit.capture.views import before_expansion, reshaped_source, rows_source, stack_source, transposed_source
from tacit.errors import LayoutError, PrivacyError
from tacit.rules import Contact, Slot
from tacit.uses import Layout, Room, Use


def _as_it_is(function: Callable[..., Any], _types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Frame:
    """One outermost private forward, or the recomputation of a part of it.

    Attributes:
        run: the pass that it belongs to.
        carrier: what rules take as their first input.
        recomputed_in: the backward that recomputes it, None in the forward itself.
        traced: it becomes a graph, so that values of tensors cannot be looked at.
    """

    run: Pass
    carrier: Tensor
    recomputed_in: int | None = None
    traced: bool = False


class LeafSlot(Slot):
    """Takes uses of a parameter itself."""

    def __init__(self, frame: Frame, name: str) -> None:
        self._run = frame.run
        self._recomputed_in = frame.recomputed_in
        self._traced = frame.traced
        self._name = name
        if frame.recomputed_in is None:
            frame.run.promise(name)

    @property
    def table(self) -> bool:
        return self._name in self._run.tables

    @property
    def alone(self) -> bool:
        return self._run.contacts.get(self._name) == 1

    @property
    def room(self) -> Room:
        return Room() if self._traced else self._run.room

    @property
    def deferred(self) -> bool:
        return self._traced

    def looked_up(self) -> None:
        self._run.tables.add(self._name)

    def record(self, use: Use) -> None:
        self._run.add(self._name, use, self._recomputed_in)


class Names:
    """Which parameters are private, by identity.

    Attributes:
        private: names of the parameters that the private optimizer steps.
        others: names of the model's other parameters: constants to the engine, even if they require a gradient.
        look_again: is called for a tensor that is none of them; where parameters are sharded, it may be a whole one.
    """

    def __init__(self, private: dict[str, Tensor], others: dict[str, Tensor]) -> None:
        self.private = {id(p): name for name, p in private.items()}
        self.others = {id(p): name for name, p in others.items()}
        self.look_again: Callable[[], None] = lambda: None

    def know(self, value: Tensor) -> bool:
        """Whether a tensor is a parameter of the model."""
        if id(value) not in self.private and id(value) not in self.others:
            self.look_again()
        return id(value) in self.private or id(value) in self.others

    def describe(self, value: Tensor) -> str:
        names = [self.private.get(id(leaf), self.others.get(id(leaf), "?")) for leaf in leaves_of(value)]
        found = ", ".join(f"`{name}`" for name in names)
        return found if value.is_leaf else f"a tensor computed from {found}"


class CaptureContact(Contact):
    """One call of a torch function under capture.

    Attributes:
        private: whether any parameter of this call is private.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        frame: Frame,
        names: Names,
        module: Callable[[], str],
        trainable: list[Tensor],
        redispatch: Callable[..., Any],
    ) -> None:
        self.function = function
        self.carrier = frame.carrier
        self._frame = frame
        self._names = names
        self._module = module
        self._trainable = trainable
        self._redispatch = redispatch
        self._slots: dict[int, Slot | None] = {}
        self.private = False
        for value in trainable:
            slot = self._slots[id(value)] = self._find_slot(value)
            self.private |= slot is not None

    @classmethod
    def of_module(cls, entrance: Entrance, frame: Frame, names: Names, trainable: list[Tensor]) -> CaptureContact:
        """A whole module taken as one call."""
        where = f"{entrance.path}, {type(entrance.module).__name__}"
        return cls(entrance.inner, frame, names, lambda: where, trainable, _as_it_is)

    def _find_slot(self, value: Tensor) -> Slot | None:
        crossing = crossing_of(value)
        if crossing is not None:
            return CrossingSlot(crossing, self._frame.run, self._frame.recomputed_in)
        if value._base is not None and not torch.is_grad_enabled():  # nothing will be recorded
            return self._find_slot(value._base)
        if value.is_leaf:
            known = self._names.know(value)
            name = self._names.private.get(id(value))
            if name is not None:
                return LeafSlot(self._frame, name)
            if known or was_made(value):
                return None
            raise PrivacyError(
                f"{self.where()} uses a trainable tensor of shape {tuple(value.shape)} that was not a parameter of the "
                "model when it was made private: its gradient would be released unclipped. Register it as a "
                "parameter before make_private(), or detach() it; fully_shard() comes before make_private(), too."
            )
        source = transposed_source(value)
        if source is not None:
            slot = self._find_slot(source)
            return None if slot is None else TransposedSlot(slot)
        shaped = reshaped_source(value)
        if shaped is not None:
            slot = self._find_slot(shaped)
            return None if slot is None else ReshapedSlot(slot, shaped.shape)
        stack = stack_source(value)
        if stack is not None:
            slot = self._find_slot(stack[0])
            return None if slot is None else StackSlot(slot, stack[1], stack[0].shape[0])
        whole = rows_source(value)
        if whole is not None:
            slot = self._find_slot(whole[0])
            return None if slot is None else RowsSlot(slot, whole[1], whole[0].shape[0])
        slots = [(leaf, self._find_slot(leaf)) for leaf in leaves_of(value)]
        kept = [(leaf, slot) for leaf, slot in slots if slot is not None]
        return DerivedSlot(value, kept) if kept else None

    def layout(self, value: object) -> Layout | None:
        mark = mark_of(value)
        if mark is None:
            return None
        if mark.layout is None:
            raise LayoutError(self._lost(mark, value))
        if mark.pointer:
            raise LayoutError(
                f"{self.where()}: an operand of shape {tuple(getattr(value, 'shape', ()))} holds numbers of rows of "
                "the batch (from nonzero, where or argsort), which depend on the other samples. Use them as an index "
                "only."
            )
        if mark.layout.samples != self._frame.run.samples:
            raise LayoutError(
                f"{self.where()}: an operand has {mark.layout.samples} samples, the forward that reads it "
                f"{self._frame.run.samples}. Keep nothing of one batch for the next: its records would move a later "
                "release, too."
            )
        return mark.layout

    def _lost(self, mark: Mark, value: object) -> str:
        operand = f"{self.where()}: an operand of shape {tuple(getattr(value, 'shape', ()))}"
        if mark.mixed:
            return (
                f"{operand} combines different samples of the batch, or rows that other samples chose, since "
                f"`{mark.lost}`: one sample then moves the gradients of others, and clipping bounds nothing. Let each "
                "sample's rows depend on that sample alone, or freeze the parameter."
            )
        return (
            f"{operand} has lost its batch dimension in `{mark.lost}`, so its rows cannot be told apart by sample and "
            "the gradient cannot be clipped. Keep the batch as one dimension up to this call, or freeze the parameter."
        )

    def slot(self, value: object) -> Slot | None:
        return self._slots.get(id(value))

    def before_expansion(self, value: Tensor, dim: int) -> Tensor:
        source = before_expansion(value, dim)
        if source is not value:
            self._slots[id(source)] = self._find_slot(source)
            self._trainable.append(source)  # keeps the identity alive
        return source

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._redispatch(function, (), args, kwargs)

    def mark(self, value: Tensor, layout: Layout) -> None:
        set_mark(value, Mark(layout))

    def where(self) -> str:
        function = getattr(self.function, "__name__", str(self.function))
        parameters = "; ".join(f"{self._names.describe(t)} {tuple(t.shape)}" for t in self._trainable)
        return f"`{function}` on {parameters} (in {self._module()})"
