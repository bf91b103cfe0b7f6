"""Runs forwards under capture; again, where a module turns out to have to run on single samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tacit.capture.contact import Frame, Names
from tacit.capture.entrance import Entrance
from tacit.capture.fallback import Failure, Fallback
from tacit.capture.inputs import refuse_lost_outputs, refuse_mixed_outputs, refuse_unseen_outputs
from tacit.capture.marks import tensors_in
from tacit.capture.mode import Capture
from tacit.capture.randomness import random_state, set_random_state
from tacit.errors import LayoutError, NoRuleError


class Runner:
    """Knows which modules are running, and how each one runs.

    Args:
        names: which parameters are private.
        state_at: names the parameter or buffer that a tensor is part of.
        apart: run every forward on one copy of the parameters for each sample.
        never_apart: no module may do so: its parameters come and go (sharded models).
    """

    def __init__(
        self, names: Names, state_at: Callable[[Tensor], str | None], *, apart: bool, never_apart: bool = False
    ) -> None:
        self._never_apart = never_apart
        self.capture = Capture(names, state_at, self.here, self._note)
        self._fallback = Fallback(self.capture, everything=apart)
        self._path: list[tuple[Entrance, bool]] = []  # and whether gradients were on when it was entered
        self._failure: Failure | None = None

    def here(self) -> str:
        """Name the innermost module that is running."""
        if not self._path:
            return "the model"
        entrance, _ = self._path[-1]
        return f"{entrance.path}, {type(entrance.module).__name__}.forward"

    @property
    def gradients_outside(self) -> bool:
        """Whether gradients were on when the innermost running module was entered."""
        return bool(self._path) and self._path[-1][1]

    def run(self, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module within a forward."""
        self._path.append((entrance, torch.is_grad_enabled()))
        frame = self.capture.frame
        try:
            if frame is not None and self._fallback.takes(entrance, outermost=len(self._path) == 1):
                return self._fallback.run(frame, entrance, args, kwargs)
            return entrance.inner(*args, **kwargs)
        finally:
            self._path.pop()

    def once(self, frame: Frame, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an outermost forward, or a recomputation."""
        self.capture.frame = frame
        try:
            with self.capture:
                return self.run(entrance, args, kwargs)
        finally:
            self.capture.frame = None

    def until_it_fits(
        self, frame: Frame, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
    ) -> Any:
        """Run an outermost forward; again, from its beginning, each time that one more module has to run apart.

        A module that fails half-way cannot be run again by itself: checkpointing counts what is saved. If the forward
        has written into its inputs, it cannot be run again at all.
        """
        random = random_state(device)
        before = frame.run.promises()
        inputs = tensors_in((args, kwargs))
        versions = [value._version for value in inputs]
        while True:
            try:
                out = self.once(frame, entrance, args, kwargs)
                refuse_mixed_outputs(out, entrance.path)
                self._refuse_lost_outputs(out, inputs, entrance)
                out = self.capture.escapes.copied_views(out)
                self.capture.escapes.end(entrance.path)
                return out
            except (NoRuleError, LayoutError) as error:
                untouched = versions == [value._version for value in inputs]
                if not (untouched and self._may_run_again(error)):
                    raise
            finally:
                self._failure = None
            set_random_state(device, random)
            frame.run.take_back(before)

    def _refuse_lost_outputs(self, out: Any, inputs: Any, entrance: Entrance) -> None:
        """An output has to show where its samples are. If not, the module may still run apart, where each is alone."""
        try:
            refuse_lost_outputs(out, entrance.path)
            refuse_unseen_outputs(out, inputs, entrance.path)
        except LayoutError as error:
            self._failure = Failure(error, (entrance,), ())
            raise

    def _may_run_again(self, error: NoRuleError | LayoutError) -> bool:
        failure = self._failure
        if self._never_apart and failure is not None:
            error.add_note(
                "Running the module on single samples, as is done elsewhere, is not supported with fully_shard."
            )
            return False
        return failure is not None and failure.error is error and self._fallback.adopt(failure)

    def _note(self, error: NoRuleError | LayoutError, trainable: Sequence[Tensor]) -> None:
        """Remember a call that no rule could take."""
        self._failure = Failure(error, tuple(entrance for entrance, _ in self._path), tuple(trainable))
