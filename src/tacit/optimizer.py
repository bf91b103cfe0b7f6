"""Any torch optimizer, fed the released gradient."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from tacit.errors import ConfigurationError, PrivacyError
from tacit.plain_sgd import plain_rates

_OWNERS: weakref.WeakValueDictionary[int, PrivateOptimizer] = weakref.WeakValueDictionary()
"""The private optimizer of each parameter that has one, by the parameter's ``id``."""


@cache
def _watch_all_optimizers() -> None:
    """After each step of any optimizer of the process ask the owners of what it stepped."""
    register_optimizer_step_post_hook(_ask_owners)


def _ask_owners(stepped: Optimizer, _args: Any, _kwargs: Any) -> None:
    parameters = (p for group in stepped.param_groups for p in group["params"])
    for owner in {id(one): one for p in parameters if (one := _OWNERS.get(id(p))) is not None}.values():
        owner.look_at_step_of(stepped)


@contextmanager
def _set_aside(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Take the gradients of these parameters away for a while, so that no optimizer steps them."""
    gradients = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient


class PrivateOptimizer(Optimizer):
    """Releases the gradient of a logical batch, then lets the wrapped optimizer take its step.

    Parameter groups, state, ``state_dict`` and step hooks are the wrapped optimizer's own: hooks see the released
    gradient. Schedulers take this object like any optimizer.

    Args:
        inner: the user's optimizer. Stepping it directly is refused from now on.
        release: turns the clipped sums in ``.grad`` into released gradients and accounts for them. It is given
            learning rates of parameters that it may step at once, and returns those that it has stepped.
        forget: is called when pending sums are thrown away.
        hold: is told whether coming backwards belong to a logical batch that goes on after the next ``step()``.
        stepping: is called when a step begins, of a physical batch or a logical one.
        awaited: tells whether ``.grad`` holds sums that were not released.
    """

    def __init__(
        self,
        inner: Optimizer,
        release: Callable[[Mapping[int, float]], Sequence[Tensor]],
        forget: Callable[[], None],
        hold: Callable[[bool], None] | None = None,
        stepping: Callable[[], None] | None = None,
        awaited: Callable[[], bool] = lambda: False,
    ) -> None:
        # Optimizer.__init__ is not called: all that it sets up lives in the wrapped optimizer.
        self.inner = inner
        self._release = release
        self._forget = forget
        self._on_hold = hold
        self._stepping = stepping
        self._known = self._stepped()
        self._held = False
        self._accumulating = False
        self._releasing = False
        self._awaited = awaited
        self._guard = inner.register_step_pre_hook(self._refuse_direct_step)
        _watch_all_optimizers()
        _OWNERS.update(dict.fromkeys(self._known, self))

    def look_at_step_of(self, other: Optimizer) -> None:
        """Refuse to go on after another optimizer has stepped parameters of this one by sums without noise.

        After its step, not before: what wraps this optimizer, and calls its step within its own, is an optimizer, too.
        """
        if other is self.inner or other is self or self._held or self._accumulating or not self._awaited():
            return
        raise PrivacyError(
            f"another optimizer ({type(other).__name__}) has stepped parameters of a private model, by clipped sums "
            "without noise and without accounting: the weights tell of single records now. Throw them away (load a "
            "checkpoint), and call step() on the optimizer that make_private() returned. An optimizer that is built "
            "anew goes through make_private(), after detach()."
        )

    def _refuse_direct_step(self, *_: Any) -> None:
        if not self._releasing:
            raise PrivacyError(
                "the original optimizer was stepped: that step would be without noise and without accounting. "
                "Call step() on the optimizer that make_private() returned."
            )

    # What torch and schedulers expect of an optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.inner.param_groups = groups

    @property
    def state(self) -> Any:
        return self.inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self.inner.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        return self.inner.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.inner.defaults = defaults

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:  # noqa: ARG002
        raise ConfigurationError(
            "a parameter group was added to a private optimizer: its parameters would get no noise. Add it to the "
            "original optimizer before make_private()."
        )

    def register_step_pre_hook(self, hook: Any) -> Any:
        return self.inner.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> Any:
        return self.inner.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> Any:
        return self.inner.register_state_dict_pre_hook(hook, prepend=prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        return self.inner.register_state_dict_post_hook(hook, prepend=prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> Any:
        return self.inner.register_load_state_dict_pre_hook(hook, prepend=prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        return self.inner.register_load_state_dict_post_hook(hook, prepend=prepend)

    def __repr__(self) -> str:
        return f"PrivateOptimizer({self.inner!r})"

    def __getstate__(self) -> dict[str, Any]:
        raise ConfigurationError(
            "a private optimizer cannot be pickled or copied: it belongs to one engine. Save optimizer.state_dict(), "
            "or use engine.save_checkpoint()."
        )

    # The step

    @torch.no_grad()
    def step(self, closure: Callable[[], float | Tensor] | None = None) -> float | Tensor | None:  # type: ignore[override]
        """Release the pending gradient, then step.

        Args:
            closure: evaluates the loss and calls backward, once.

        Returns:
            What the closure returned.
        """
        loss: float | Tensor | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._stepping is not None:
            self._stepping()
        if self._held:
            self._accumulating = True
            return loss
        self._accumulating = False  # whatever happens now: zero_grad() throws away a sum whose release has failed
        if self._stepped() != self._known:
            raise PrivacyError(
                "the original optimizer's parameter groups have changed since make_private(): new parameters would be "
                "stepped without noise. Build the optimizer as it shall be before make_private()."
            )
        moved = self._release(plain_rates(self.inner, own=(self._refuse_direct_step, _ask_owners)))
        self._releasing = True
        try:
            with _set_aside(moved):
                self.inner.step()  # of what is left; schedulers count it
        finally:
            self._releasing = False
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Throw away pending gradients; nothing happens within a logical batch that is being accumulated."""
        if self._accumulating:
            return
        self.inner.zero_grad(set_to_none)
        self._forget()

    @property
    def accumulating(self) -> bool:
        """Whether a part of a logical batch is pending, and more of it is to come."""
        return self._accumulating

    def hold_release(self, hold: bool) -> None:
        """Say whether the coming ``step()`` ends a physical batch only, and so releases nothing."""
        self._held = hold
        if self._on_hold is not None:
            self._on_hold(hold)

    def discard_pending(self) -> None:
        """Throw away an unfinished logical batch."""
        self._accumulating = False
        self.hold_release(False)
        self.zero_grad()

    def detach(self) -> None:
        self._guard.remove()
        for known in self._known:
            _OWNERS.pop(known, None)

    def _stepped(self) -> set[int]:
        return {id(p) for group in self.inner.param_groups for p in group["params"]}
