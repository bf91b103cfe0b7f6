"""The fallback: a module that has no rule runs on one copy of its parameters for each sample.

The gradient of sample b's copy *is* the gradient of sample b, whatever the module computes. There is one forward, under
``torch.vmap``, or in a loop over the samples where that is not possible. The copies are views; their gradients,
``(B, *shape)``, are dense, so this is exact but slower than a rule.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tacit.capture.apart import Call, left_alone, one_by_one, vectorized
from tacit.capture.contact import CaptureContact, Frame
from tacit.capture.derived import trace
from tacit.capture.entrance import Entrance
from tacit.capture.marks import map_tensors, mark_of, set_mark, tensors_in
from tacit.capture.mode import Capture
from tacit.capture.placement import MixedError, Placement, find_placements, place
from tacit.errors import FallbackWarning, LayoutError, MixingError, NoRuleError, TacitError
from tacit.rules import per_sample_copies


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that no rule could take.

    Attributes:
        error: what it raised.
        path: the entrances that were being run, outermost first.
        trainable: the parameters, or tensors derived from them, of the call.
    """

    error: NoRuleError | LayoutError
    path: tuple[Entrance, ...]
    trainable: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """How a module runs apart: where its outputs' samples are, their ranks, and whether in a loop."""

    placements: tuple[Placement, ...]
    ranks: tuple[int, ...]
    loop: bool


class Fallback:
    """Which modules of a session run apart, and how.

    Args:
        capture: the capture, which is told to look on only while a module runs apart.
        everything: every outermost forward runs apart (``grad_sample_mode="functorch"``).
    """

    def __init__(self, capture: Capture, *, everything: bool) -> None:
        self.everything = everything
        self._capture = capture
        self._reasons: dict[Entrance, NoRuleError | LayoutError] = {}
        self._barred: set[Entrance] = set()
        self._ways: dict[tuple[Any, ...], Way] = {}

    def takes(self, entrance: Entrance, *, outermost: bool) -> bool:
        return entrance in self._reasons or (self.everything and outermost)

    def adopt(self, failure: Failure) -> bool:
        """Let the innermost module that owns all parameters of a failed call run apart from now on.

        Returns:
            Whether there is one that does not do so already.
        """
        leaves = {id(leaf) for value in failure.trainable for leaf in trace(value)[0]}
        for entrance in reversed(failure.path):
            owned = {id(p) for p in entrance.module.parameters()}
            outermost = entrance is failure.path[0] and self.everything
            known = outermost or entrance in self._reasons or entrance in self._barred
            if leaves <= owned and not known:
                # without the frames, which hold the batch
                self._reasons[entrance] = failure.error.with_traceback(None)
                return True
        return False

    def bar(self, entrance: Entrance) -> None:
        """A module cannot run apart, since the samples of its inputs are lost: one around it may."""
        self._reasons.pop(entrance, None)
        self._barred.add(entrance)

    def run(self, frame: Frame, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module apart.

        Raises:
            MixingError: it treats samples together, or writes the batch into a buffer.
            LayoutError: the samples of its inputs cannot be told apart; a module around it may run apart instead.
        """
        tensors = tensors_in((args, kwargs))
        private = [
            (name, p)
            for name, p in entrance.module.named_parameters()
            if p.requires_grad and id(p) in self._capture.names.private
        ]
        inputs = [(place, t) for place, t in enumerate(tensors) if t.requires_grad and mark_of(t) is None]
        try:
            trainable = [value for _, value in (*private, *inputs)]
            contact = CaptureContact.of_module(entrance, frame, self._capture.names, trainable)
            layouts = [contact.layout(value) for value in tensors]
        except LayoutError as error:
            self.bar(entrance)
            self._capture.failed(error, [value for _, value in private])
            raise
        if all(layout is None for layout in layouts):
            return entrance.inner(*args, **kwargs)
        call = Call(entrance, args, kwargs, layouts, self._looking_on)
        way = self._way(call)
        copies = {name: per_sample_copies(contact, p, call.samples) for name, p in private}
        extra = {place: per_sample_copies(contact, t, call.samples) for place, t in inputs}
        with self._switched("off"):
            out = self._run_apart(call, way, copies, extra)
            if [value.dim() - 1 for value in tensors_in(out)] != list(way.ranks):  # the module's flags have changed
                way = self._way(call, anew=True)
            return self._placed(out, way, entrance)

    def _run_apart(self, call: Call, way: Way, copies: dict[str, Tensor], extra: dict[int, Tensor]) -> Any:
        module = call.entrance.module
        buffers = dict(module.named_buffers())
        held = dict(buffers)
        run = one_by_one if way.loop else vectorized
        fixed = {name: p.detach() for name, p in module.named_parameters() if name not in copies and p.requires_grad}
        out = run(call, copies, extra, fixed, held)
        for name, value in held.items():
            if value is buffers[name]:
                continue
            if way.loop and value.shape == buffers[name].shape:
                buffers[name].copy_(value)
            else:
                parent, _, last = name.rpartition(".")
                module.get_submodule(parent)._buffers[last] = value
        return out

    def _placed(self, out: Any, way: Way, entrance: Entrance) -> Any:
        left = iter(way.placements)

        def put(parts: Tensor) -> Tensor:
            value, mark = place(parts, next(left))
            if mark is not None:
                set_mark(value, mark)
            return value

        try:
            return map_tensors(put, out)
        except MixedError as error:
            raise self._mixed(entrance, error) from error

    def _way(self, call: Call, *, anew: bool = False) -> Way:
        """How to run a call: found once for each kind of call, by running it for its values."""
        entrance = call.entrance
        kind = (
            entrance,
            *(
                None if lay is None else (t.dim(), lay.dim, lay.outer, lay.inner)
                for t, lay in zip(call.tensors, call.layouts, strict=True)
            ),
        )
        known = self._ways.get(kind)
        if known is not None and call.samples > 1 and not anew:
            return known
        values = {name: p.detach() for name, p in entrance.module.named_parameters()}
        buffers = dict(entrance.module.named_buffers())
        with self._switched("off"):
            try:
                placements, ranks, compared = find_placements(call, values, buffers)
            except MixedError as error:
                raise self._mixed(entrance, error) from error
            except TacitError:
                raise
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise self._mixed(entrance, MixedError(f"it fails on a single sample: {error}")) from error
            reason = self._reasons.get(entrance)
            if not compared and reason is not None and isinstance(reason, LayoutError):
                raise reason
            way = Way(tuple(placements), tuple(ranks), loop=not _vectorizes(call, values, buffers))
        if known is None:
            self._notify(entrance, way)
        self._ways[kind] = way
        return way

    def _mixed(self, entrance: Entrance, found: MixedError) -> TacitError:
        reason = self._reasons.get(entrance)
        if reason is not None and isinstance(reason, LayoutError):
            return reason  # what lost the batch says more
        where = f"{entrance.path} ({type(entrance.module).__name__})"
        if reason is not None:
            return NoRuleError(f"{reason} Nor can {where} be run on each sample alone: {found}.")
        return MixingError(
            f"{where} cannot be run on each sample alone: {found}. Then a sample has no gradient of its own, and "
            "clipping bounds nothing. Give its inputs and outputs a batch dimension, or move what combines samples "
            "out of the model."
        )

    def _notify(self, entrance: Entrance, way: Way) -> None:
        reason = self._reasons.get(entrance)
        if reason is None:
            return
        found = reason.found if isinstance(reason, NoRuleError) else str(reason)
        how = "once for each sample, in a loop" if way.loop else "under torch.vmap"
        warnings.warn(
            f"{entrance.path} ({type(entrance.module).__name__}) runs {how}, with a copy of its parameters for each "
            f"sample: exact, but slower. The reason: {found}. tacit.register_rule teaches a new function.",
            FallbackWarning,
            stacklevel=2,
        )

    def _looking_on(self) -> AbstractContextManager[None]:
        return self._switched("on" if torch.is_grad_enabled() else "strict")

    @contextmanager
    def _switched(self, apart: str) -> Iterator[None]:
        before = self._capture.apart
        self._capture.apart = apart
        try:
            yield
        finally:
            self._capture.apart = before


def _vectorizes(call: Call, values: dict[str, Tensor], buffers: dict[str, Tensor]) -> bool:
    copies = {name: value.expand(call.samples, *value.shape) for name, value in values.items()}
    held = {name: value.clone() for name, value in buffers.items()}
    try:
        with left_alone(call.entrance.module, training=True):
            vectorized(call, copies, {}, {}, held, [row.clone() for row in call.rows()])
    except TacitError:
        raise
    except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):
        return False
    return True
