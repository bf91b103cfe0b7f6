"""The entrance that stands in front of a module's forward.

It is an object in the module's ``__dict__``, not a closure, a new class or a hook: so a deep copy or a pickle of the
model is a plain model, and a direct call of ``module.forward(x)`` is seen too.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch._C._dynamo import eval_frame

from tacit.errors import ConfigurationError
from tacit.validation import is_compiled_wrapper

_INLINED = (
    "a private model runs within a compiled function: it makes a graph of its own. Compile the model itself, after "
    "make_private(), or pass the compiled model to make_private()."
)


class Gatekeeper(Protocol):
    """What an entrance asks when it is called."""

    @property
    def passing(self) -> bool:
        """Whether entrances let calls through that dynamo traces."""

    def enter(self, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module."""

    def enter_compiled(self, entrance: Entrance, callback: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module that torch.compile calls, with what dynamo would call for its frames."""


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
        # Dynamo does not begin a graph here (see below), but inlines this into one.
        if torch.compiler.is_dynamo_compiling():
            if self._keeper.passing:
                return self.inner(*args, **kwargs)
            torch._dynamo.graph_break(msg=_INLINED)
        callback = eval_frame.get_eval_frame_callback()
        if callback is None or callback is False:
            return self._keeper.enter(self, args, kwargs)
        eval_frame.set_eval_frame(None)
        try:
            return self._keeper.enter_compiled(self, callback, args, kwargs)
        finally:
            eval_frame.set_eval_frame(callback)

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


class Entrances:
    """The entrances of a model, one for each module.

    Attributes:
        aside: they have been taken away for a while.

    Raises:
        ConfigurationError: a module's calls cannot be seen.
    """

    def __init__(self, model: nn.Module, keeper: Gatekeeper) -> None:
        self.aside = False
        self._all = [
            Entrance(module, name or "the model", keeper)
            for name, module in model.named_modules()
            if not is_compiled_wrapper(module)
        ]
        for entrance in self._all:
            if isinstance(entrance.module, torch.jit.ScriptModule):
                raise ConfigurationError(
                    f"{entrance.path} is a TorchScript module, whose calls cannot be seen. Pass the original."
                )
        for entrance in self._all:
            entrance.install()

    def __iter__(self) -> Iterator[Entrance]:
        return iter(self._all)

    def remove(self) -> None:
        for entrance in self._all:
            entrance.remove()

    @contextmanager
    def stepped_aside(self) -> Iterator[None]:
        """Take them away while dynamo looks at the modules: of plain ones it knows more."""
        gone = [entrance for entrance in self._all if entrance.module.__dict__.get("forward") is entrance]
        for entrance in gone:
            entrance.remove()
        self.aside = True
        try:
            yield
        finally:
            self.aside = False
            for entrance in gone:
                entrance.install()


# The frame that torch.compile(model) begins with: it is run as it is, and calls what becomes a graph.
eval_frame.set_code_exec_strategy(
    Entrance.__call__.__code__,
    eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT),
)
