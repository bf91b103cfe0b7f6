"""Tensors made of parameters alone that leave a reentrant checkpoint, such as T5's position bias.

In the forward they have no graph: the checkpoint hides it. So their uses by sample wait in the pass, under a name of
their own, until the backward recomputes the checkpoint and the graph is there to pull them back to the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tacit.capture.derived import was_made
from tacit.capture.frames import in_reentrant_checkpoint
from tacit.capture.marks import map_tensors, mark_of, set_mark, tensors_in
from tacit.capture.passes import Pass
from tacit.errors import LeakError
from tacit.rules import Slot
from tacit.uses import Use

_CROSSING = "_tacit_crossing"


class Crossing:
    """One output of one call of a checkpointed module: it may turn out to be made of parameters.

    Attributes:
        name: its name in the pass.
        settled: its uses were pulled back, or found to be those of a constant.
    """

    def __init__(self, path: str, call: int, place: int) -> None:
        self.name = f"output {place} of {path} (call {call})"
        self.settled = False

    def error(self, why: str) -> LeakError:
        return LeakError(
            f"{self.name} was computed from parameters alone in a checkpoint with use_reentrant=True, and {why}: the "
            "gradients of its samples could not be brought back to the parameters. Use use_reentrant=False."
        )


class CrossingSlot(Slot):
    """Takes uses of a tensor that crossed a checkpoint."""

    def __init__(self, crossing: Crossing, run: Pass, recomputed_in: int | None) -> None:
        self._crossing = crossing
        self._run = run
        self._recomputed_in = recomputed_in

    def record(self, use: Use) -> None:
        if self._crossing.settled:
            raise self._crossing.error("it was used after the checkpoint had been recomputed")
        self._run.add(self._crossing.name, use, self._recomputed_in)


def crossing_of(value: Tensor) -> Crossing | None:
    """The crossing that a tensor is: as a checkpoint handed it out, or as a recomputation took it in."""
    found: Crossing | None = getattr(value, _CROSSING, None)
    if found is None:  # almost always, and asked of every tensor of every call
        return None
    crossed = value.grad_fn is None or value.grad_fn.name() == "CheckpointFunctionBackward"
    return found if crossed else None


def set_crossing(value: Tensor, crossing: Crossing) -> None:
    setattr(value, _CROSSING, crossing)


def leave_checkpoint(run: Pass, module: object, path: str, inputs: Any, out: Any, *, outermost: bool) -> Any:
    """Prepare the outputs of a module in a reentrant checkpoint for leaving it.

    Outputs that do not depend on the batch are named, by the outermost module; inputs that are handed on become objects
    of their own, since autograd would make others of them and marks would be lost.
    """
    handed = {id(value) for value in tensors_in(inputs)}
    if all(mark_of(value) is not None and id(value) not in handed for value in tensors_in(out)):
        return out
    if not in_reentrant_checkpoint():
        return out
    made: list[Crossing | None] = []
    calls = run.crossings.setdefault(module, []) if outermost else []
    calls.append(made)

    def note(value: Tensor) -> Tensor:
        made.append(None)
        mark, known = mark_of(value), crossing_of(value)
        if id(value) in handed and (mark is not None or known is not None):
            with torch._C.DisableTorchFunction():
                value = value.detach()
            if mark is not None:
                set_mark(value, mark)
            elif known is not None:
                set_crossing(value, known)
        elif outermost and mark is None and value.is_floating_point() and (not value.requires_grad or was_made(value)):
            made[-1] = crossing = Crossing(path, len(calls), len(made))
            set_crossing(value, crossing)
        return value

    return map_tensors(note, out)


def settle(run: Pass, module: object, out: Any, find_slot: Callable[[Tensor], Slot | None]) -> None:
    """Pull the uses of a checkpointed module's outputs back, now that a recomputation has made their graph.

    Raises:
        LeakError: it cannot be told which of several calls this is, or an output depends on the batch this time.
        UnseenError: an output depends on the batch by a call that could not be seen.
    """
    calls = run.crossings.get(module, [])
    for place, value in enumerate(tensors_in(out)):
        for crossing in [call[place] for call in calls if place < len(call)]:
            if crossing is not None:
                _settle(crossing, run.take(crossing.name), value, find_slot, certain=len(calls) == 1)


def _settle(
    crossing: Crossing, uses: list[Use], value: Tensor, find_slot: Callable[[Tensor], Slot | None], *, certain: bool
) -> None:
    if uses and not certain:
        raise crossing.error("the module was called several times")
    if mark_of(value) is not None:
        if certain:
            raise crossing.error("depended on the batch when it was recomputed")
        return
    slot = find_slot(value) if value.requires_grad else None  # also for its complaints: it is made of parameters
    if slot is not None:
        for use in uses:
            slot.record(use)
    crossing.settled = certain
