"""The leak guard: no gradient reaches a private parameter except through its gate.

It watches each parameter's accumulation node. What arrives must be the very tensor that the gate returned, not
written to since: any other path (the parameter used outside a private forward, a penalty on weights in the loss, a
hook that changes the gradient) adds to it or comes alone, and is an error. ``torch.autograd.grad(loss, parameter)``
goes around it, and fills no ``.grad``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from tacit.capture.asked_later import AskedLater
from tacit.capture.fingerprints import (
    Fingerprint,
    are_alike,
    fingerprint,
    fingerprints,
    first_difference,
    numbers,
    sum_fingerprint,
)
from tacit.capture.graphs import nodes_behind
from tacit.capture.unrounded import UnroundedSums
from tacit.distributed import local
from tacit.errors import LeakError, PrivacyError
from tacit.uses import NARROW, answers_at_once

_NOTHING = (None, -1, None)
"""What is expected where no gate has returned anything."""


class LeakGuard:
    """Watches parameters, and remembers what their gradients were after each backward."""

    def __init__(self) -> None:
        self._nodes: dict[str, Any] = {}
        self._handles: list[Any] = []
        self._expected: dict[str, tuple[tuple[int, int], int, Fingerprint | None]] = {}
        self._arrived: dict[str, Fingerprint | None] = {}
        self._accumulated: dict[str, tuple[tuple[int, int], Fingerprint]] = {}
        self._unrounded = UnroundedSums()
        self._later = AskedLater()
        self.broken = False
        self.unwatched_forward = ""
        self.zeroed = 0

    def watch(self, name: str, parameter: Tensor, node: Any = None) -> None:
        """Watch a trainable parameter. Autograd gives it a new node when its type or device changes.

        Args:
            name: its name.
            parameter: itself.
            node: the node that accumulates its gradient, if that is known already.
        """
        refuse_accumulation_hooks(name, parameter)
        node = get_gradient_edge(parameter).node if node is None else node
        if self._nodes.get(name) is node:
            return
        self._nodes[name] = node  # autograd forgets hooks with the node
        self._handles.append(node.register_prehook(self._before(name, parameter)))
        self._handles.append(node.register_hook(self._after(name, parameter)))

    def expect(self, names: Sequence[str], gradients: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
        """A gate returns the gradients of these parameters, which are ``totals`` in the parameters' own types."""
        task = torch._C._current_graph_task_id()
        for name, gradient, total, known in zip(names, gradients, totals, self._prints(gradients), strict=True):
            self._expected[name] = _identity(gradient), task, known
            self._unrounded.expect(name, total, gradient)

    def _prints(self, gradients: Sequence[Tensor]) -> Sequence[Fingerprint | None]:
        """Fingerprints by which gradients are told when they have come to lie in ``.grad``."""
        return fingerprints(gradients)

    def _before(self, name: str, parameter: Tensor) -> Callable[[tuple[Tensor, ...]], None]:
        def check(gradients: tuple[Tensor, ...]) -> None:
            refuse_accumulation_hooks(name, parameter)
            before, gradient = parameter.grad, gradients[0]
            if before is None:
                self._unrounded.drop(name)
            else:
                self._check_before(name, before)
            expected, task, known = self._expected.pop(name, _NOTHING)
            if task != torch._C._current_graph_task_id():  # an earlier backward's, which did not want this gradient
                expected = None
            if expected is None and not bool(local(gradient).any()):
                return  # reentrant checkpointing makes zeros for outputs that got no gradient
            if expected is None or _identity(gradient) != expected:
                raise self.leak(name, alone=expected is None)
            self._arrived[name] = self._left_by(name, parameter, gradient, before, known)
            self._unrounded.arrived(name, before)

        return check

    def _check_before(self, name: str, before: Tensor) -> None:
        """Hold that ``.grad`` is as the last backward left it, now that more is added; of a GPU it is asked later."""
        # What is the rounding of a sum must be known at once to be cleared.
        if self._waits(before) and before.dtype not in NARROW and self._is_where_left(name, before):
            self._later.add(name, self._accumulated[name][1], fingerprint(before), arriving=False)
            return
        try:
            self.check_untouched({name: before})
        except PrivacyError:
            self.broken = True
            raise

    def _waits(self, gradient: Tensor) -> bool:
        """Whether questions about this gradient are asked at the step."""
        return not answers_at_once(gradient.device)

    def _left_by(
        self, name: str, parameter: Tensor, gradient: Tensor, before: Tensor | None, known: Fingerprint | None
    ) -> Fingerprint | None:
        """The fingerprint that ``.grad`` has once ``gradient`` is in it; None if only a look at it will tell.

        Args:
            before: what is in ``.grad`` now.
            known: that of what the gate returned.

        Raises:
            LeakError: ``gradient`` has not the numbers any more that its gate returned.
        """
        # Of tensors that are laid out alike the same numbers are looked at.
        if known is None or not (parameter.is_contiguous() and gradient.is_contiguous()):
            return None
        if before is None:
            return known
        if not before.is_contiguous():
            return None
        if self._waits(gradient):
            self._later.add(name, known, fingerprint(gradient), arriving=True)
        elif not are_alike([known], [fingerprint(gradient)])[0]:
            raise self.leak(name, alone=False)
        return sum_fingerprint(parameter, before, gradient)

    def _after(self, name: str, parameter: Tensor) -> Callable[..., None]:
        def note(*_: Any) -> None:
            known, gradient = self._arrived.pop(name, None), parameter.grad
            if gradient is not None:
                self._accumulated[name] = _identity(gradient), fingerprint(gradient) if known is None else known

        return note

    def leak(self, name: str, *, alone: bool = True) -> LeakError:
        """The error of a gradient that reached a parameter beside its gate; nothing may be released of it."""
        self.broken = True
        return LeakError(self._message(name, alone=alone))

    def _message(self, name: str, *, alone: bool) -> str:
        if alone and self.unwatched_forward:
            cause = (
                f"without passing the clipping: {self.unwatched_forward} ran in eval mode with gradients on, where "
                "nothing is watched. Call model.train() before training, and evaluate under torch.no_grad()"
            )
        elif alone:
            cause = (
                "without passing the clipping: it was used outside any private forward (F.linear(h, layer.weight) in "
                "the loss), data went through NumPy on the way, or something computed from parameters alone left a "
                "checkpoint with use_reentrant=True, not as a module's output. Move the computation into a forward "
                "method of the model, keep to tensors, and use use_reentrant=False"
            )
        else:
            cause = (
                "beside its clipped sum, unclipped: a penalty on weights in the loss (use weight_decay instead), "
                "a use outside any private forward (move it into a forward method of the model), or a hook that "
                "changed its gradient (remove it)"
            )
        return (
            f"a gradient reached the parameter {name!r} {cause}. It would be released with no bound. Call "
            "optimizer.zero_grad() before going on."
        )

    def check_untouched(self, gradients: Mapping[str, Tensor]) -> None:
        """Raise unless each of ``gradients`` is as the last backward left it.

        Raises:
            PrivacyError: one was changed, or made by something else than a private backward.
        """
        where_left = {name: self._is_where_left(name, gradient) for name, gradient in gradients.items()}
        same = [name for name, found in where_left.items() if found]
        suspects = [name for name, found in where_left.items() if not found]
        if same:
            then = [self._accumulated[name][1] for name in same]
            alike = are_alike(then, fingerprints([gradients[name] for name in same]))
            suspects += [n for n, fine in zip(same, alike, strict=True) if not fine]
        self.zeroed += len(suspects)  # or else there is an error
        for name in suspects:
            if bool(local(gradients[name]).any()):
                raise _changed_after(name)
            self._unrounded.drop(name)  # cleared, and what it was the rounding of with it

    def divided(self, gradients: Mapping[str, Tensor], by: float) -> list[str]:
        """The gradients that the last backward left, all of which were divided by a power of two since.

        A GradScaler's division leaves no trace beside the numbers; whatever else was written there does. A gradient
        that is 0 is no evidence of a division, be it that the backward left it so, or that it was cleared.

        Returns:
            Their names, without those that were cleared; none if one was not divided, or if there is no evidence.
        """
        if not gradients:
            return []
        now = dict(zip(gradients, fingerprints(list(gradients.values()), times=by), strict=True))
        there = [name for name, number in zip(now, numbers(list(now.values())), strict=True) if number != 0]
        if not there or not all(self._is_where_left(name, gradients[name]) for name in there):
            return []
        then = [self._accumulated[name][1] for name in there]
        if not all(are_alike(then, [now[name] for name in there])) or not all(map(math.isfinite, numbers(then))):
            return []
        empty = [name for name in gradients if name not in there and self._is_where_left(name, gradients[name])]
        return there + [name for name in empty if not bool(self._accumulated[name][1])]

    def refuse_changed(self, pairs: Sequence[tuple[str, Fingerprint, Fingerprint]]) -> None:
        """Raise if a gradient's fingerprint in a backward was not the one that was due: ``(name, due, seen)``."""
        name = first_difference(pairs)
        if name is None:
            return
        self.broken = True
        raise PrivacyError(
            f"the gradient of {name!r} was changed during backward(), after the clipping and before it was sent to the "
            "other processes or lay in .grad (by a hook on its accumulation, or an assignment to .grad in a hook). The "
            "noise was calibrated for the clipped sum. Remove the hook, and call optimizer.zero_grad()."
        )

    def _is_where_left(self, name: str, gradient: Tensor) -> bool:
        record = self._accumulated.get(name)
        return record is not None and record[0] == _identity(gradient)

    def check_whole(self, names: Iterable[str]) -> None:  # noqa: ARG002
        """Raise unless the gradients of these parameters are those of the whole batch: of all processes.

        And unless all that was to be asked later was as it should be.
        """
        wrong, cleared = self._later.settle()
        self.zeroed += cleared
        if wrong:
            self.broken = True
            name, arriving = wrong[0].name, wrong[0].arriving
            raise self.leak(name, alone=False) if arriving else _changed_after(name)

    def check_graph(self, value: Tensor, carrier: Tensor) -> bool:
        """Tell whether all that ``value`` depends on and that wants a gradient is behind the carrier.

        Raises:
            LeakError: it depends on a watched parameter by a way that does not pass the carrier.
        """
        alone, reached = True, False
        watched = {node: name for name, node in self._nodes.items()}
        for node in nodes_behind([value.grad_fn], [carrier.grad_fn]):
            if node in watched:
                raise LeakError(self._message(watched[node], alone=True))
            alone &= not node.name().endswith("AccumulateGrad")
            reached |= any(edge[0] is carrier.grad_fn for edge in node.next_functions)
        return alone and reached

    def take(self, name: str, parameter: Tensor) -> Tensor:
        """The clipped sum that is pending for a parameter, for the release; zeros if there is none.

        It is the gradient itself, or what this is the rounding of.
        """
        gradient, total = parameter.grad, self._unrounded.take(name)
        if gradient is None:
            return torch.zeros_like(parameter)
        if total is not None:
            return total
        return gradient.detach() if gradient.requires_grad else gradient

    def drop(self, name: str) -> None:
        """Forget the gradient of a parameter that was frozen since."""
        self._accumulated.pop(name, None)
        self._unrounded.drop(name)

    def accept(self, name: str, gradient: Tensor) -> None:
        """Take a released gradient for what it is: adding to it, or releasing it again, reveals nothing new."""
        self.accept_all({name: gradient})

    def accept_all(self, gradients: Mapping[str, Tensor]) -> None:
        """The same of several."""
        prints = fingerprints(list(gradients.values()))
        for (name, gradient), known in zip(gradients.items(), prints, strict=True):
            self._accumulated[name] = _identity(gradient), known

    def reset(self) -> None:
        """Forget an interrupted backward and the gradients that it left."""
        self._expected.clear()
        self._arrived.clear()
        self._accumulated.clear()
        self._unrounded.clear()
        self._later.clear()
        self.broken = False
        self.unwatched_forward = ""

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._nodes.clear()
        self.reset()


def _changed_after(name: str) -> PrivacyError:
    return PrivacyError(
        f"the gradient of {name!r} was changed after its backward() (clip_grad_norm_, a GradScaler, or an "
        "assignment to .grad). The noise was calibrated for the clipped sum, not for what is there now. "
        "Change gradients after the noise instead, in a hook of optimizer.register_step_pre_hook; pass a "
        "GradScaler to make_private(..., grad_scaler=scaler)."
    )


def refuse_accumulation_hooks(name: str, parameter: Tensor) -> None:
    """Refuse hooks that would use the clipped sum as soon as it is there, before the noise.

    Raises:
        PrivacyError: ``parameter`` has a post-accumulate-grad hook.
    """
    if parameter._post_accumulate_grad_hooks:
        raise PrivacyError(
            f"{name!r} has a post-accumulate-grad hook (as for an optimizer step inside backward): it would see, and "
            "could use, the gradient before the noise. Remove it; step hooks of the optimizer run after the noise."
        )


def _identity(value: Tensor) -> tuple[int, int]:
    here = local(value)
    return here.data_ptr(), here._version
