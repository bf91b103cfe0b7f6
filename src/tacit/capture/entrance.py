"""The entrance that stands in front of a module's forward.

It is an object in the module's ``__dict__``, not a closure, a new class or a hook: so a deep copy or a pickle of the
model is a plain model, and a direct call of ``module.forward(x)`` is seen too.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn


class Gatekeeper(Protocol):
    """What an entrance asks when it is called."""

    def enter(self, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...


class Entrance:
    """Calls the module's own forward under capture.

    Attributes:
        module: the module.
        path: its name in the private model, for errors.
        inner: what ``module.forward`` was.
    """

    def __init__(self, module: nn.Module, path: str, keeper: Gatekeeper) -> None:
        functools.update_wrapper(self, module.forward)
        self.module = module
        self.path = path
        self.inner: Callable[..., Any] = module.forward
        self.replaced = module.__dict__.get("forward")
        self._keeper = keeper

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._keeper.enter(self, args, kwargs)

    def install(self) -> None:
        self.module.__dict__["forward"] = self

    def remove(self) -> None:
        """Put back what was there. If something wrapped the entrance since, it stays, and passes calls through."""
        if self.module.__dict__.get("forward") is not self:
            return
        if self.replaced is None:
            del self.module.__dict__["forward"]
        else:
            self.module.__dict__["forward"] = self.replaced

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.inner, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.module, "forward")
