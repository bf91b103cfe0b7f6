"""Activation checkpointing runs modules again, inside the backward: with the marks that they had the first time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tacit.capture.contact import CaptureContact, Frame
from tacit.capture.crossings import Crossing, crossing_of, leave_checkpoint, set_crossing, settle
from tacit.capture.entrance import Entrance
from tacit.capture.frames import in_reentrant_checkpoint
from tacit.capture.marks import Mark, mark_of, set_mark, tensors_in
from tacit.capture.passes import Pass, current_task
from tacit.capture.running import Runner
from tacit.errors import SecondBackwardError
from tacit.rules import Slot

Known = tuple[Mark | None, Crossing | None]


class Recomputation:
    """Remembers what forwards were given, and recomputes modules."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._known: dict[Entrance, tuple[Pass, dict[tuple[torch.Size, ...], list[Known]]]] = {}
        self._nested: dict[Entrance, tuple[Pass, int]] = {}

    def forget(self) -> None:
        self._known.clear()

    def finished(self) -> None:
        """A backward has clipped its batch."""
        self._nested.clear()

    def remember(self, entrance: Entrance, run: Pass, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep which inputs were marked: recomputation passes other tensor objects."""
        if len(args) == 1 and not kwargs and type(args[0]) is Tensor:  # as almost all
            tensors = [args[0]]
        else:
            tensors = tensors_in((args, kwargs)) if kwargs else tensors_in(args)
        known = self._known.get(entrance)
        if known is None or known[0] is not run:
            known = self._known[entrance] = (run, {})
        with torch._C.DisableTorchFunction():  # the capture need not look on
            known[1][tuple([t.shape for t in tensors])] = [(mark_of(t), crossing_of(t)) for t in tensors]
        if not torch.is_grad_enabled() and in_reentrant_checkpoint():
            run.plain_only = True  # a norm pass cannot cross it

    def note(self, entrance: Entrance) -> None:
        """A module runs outside any forward of ours and without gradients. Within a backward that may be a checkpoint
        in a checkpointed function, which is recomputed once more, in a backward within this one.
        """
        known = self._known.get(entrance)
        if known is not None and current_task() != -1 and not known[0].finished:
            self._nested.setdefault(entrance, (known[0], known[0].root(current_task())))

    def watch(self, frame: Frame, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module within a forward, or within a recomputation."""
        if frame.recomputed_in is None:
            self.remember(entrance, frame.run, args, kwargs)
        else:  # a checkpoint within a checkpoint will run it once more, in a backward within this one
            if not torch.is_grad_enabled():
                self.remember(entrance, frame.run, args, kwargs)
            self._nested[entrance] = frame.run, frame.recomputed_in
        out = self._runner.run(entrance, args, kwargs)
        if torch.is_grad_enabled():
            return out
        outermost = self._runner.gradients_outside
        return leave_checkpoint(frame.run, entrance, entrance.path, (args, kwargs), out, outermost=outermost)

    def run(self, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> Any:
        """Run a module again, inside a backward.

        Raises:
            SecondBackwardError: it had no forward of its own.
        """
        tensors = tensors_in((args, kwargs))
        run, patterns = self._known.get(entrance, (None, {}))
        known = patterns.get(tuple(t.shape for t in tensors))
        if run is None or known is None:
            raise SecondBackwardError(
                f"{entrance.path} ran inside a backward without a forward of its own before it. Either the whole "
                "private model is checkpointed with use_reentrant=True: use use_reentrant=False. Or a checkpoint of "
                "either kind is within a module that runs on single samples. With "
                'grad_sample_mode="functorch" the whole model does: leave the checkpoint out, or use '
                'grad_sample_mode="auto". After a FallbackWarning the module that it names does: leave the checkpoint '
                "out, or put one with use_reentrant=False around that module."
            )
        for value, (mark, crossing) in zip(tensors, known, strict=True):
            if mark is not None:
                set_mark(value, mark)
            elif crossing is not None and value.is_leaf:
                set_crossing(value, crossing)
        anchor = torch.zeros((), device=device, requires_grad=True)
        outer, task = self._nested.get(entrance, (run, current_task()))
        frame = Frame(run, anchor, task if outer is run else current_task())
        out = self._runner.once(frame, entrance, args, kwargs)
        settle(run, entrance, out, lambda value: self._slot(frame, entrance, value))
        return out

    def _slot(self, frame: Frame, entrance: Entrance, value: Tensor) -> Slot | None:
        return CaptureContact.of_module(entrance, frame, self._runner.capture.names, [value]).slot(value)
