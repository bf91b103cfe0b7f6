"""Rules for functions that are not torch's: custom operators and plain Python functions."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.overrides import handle_torch_function, has_torch_function

from tacit.errors import ConfigurationError
from tacit.rules.registry import Rule, rule_for

F = TypeVar("F", bound=Callable[..., Any])


def register_rule(function: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Register the decorated rule for a function of your own.

    A rule is called as ``rule(contact, *args, **kwargs)`` instead of the function wherever the batch meets a
    trainable parameter in it; see :class:`tacit.rules.Contact` for what it may ask. Hold it to
    :func:`tacit.testing.check_rule`.

    Args:
        function: a torch function that has no rule yet, a custom operator (``torch.library.custom_op``,
            ``torch.ops.ns.name``), or a Python function made by :func:`visible`.

    Raises:
        ConfigurationError: it has a rule already, or its calls cannot be seen.
    """
    return rule_for(*_names_of(function))


def visible(function: F) -> F:
    """Make the calls of a Python function visible to the engine as one call, so that it can have a rule.

    Wrap what goes through an ``autograd.Function`` or an extension of your own, which the engine cannot look into.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = tuple(_tensors(args)) + tuple(_tensors(tuple(kwargs.values())))
        if has_torch_function(tensors):
            return handle_torch_function(call, tensors, *args, **kwargs)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _tensors(values: tuple[Any, ...]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(tuple(value))


def _names_of(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """All the objects as which calls of ``function`` are seen."""
    if isinstance(function, CustomOpDef):
        function = function._opoverload
    if isinstance(function, torch._ops.OpOverload):
        return [function, function.overloadpacket]
    if isinstance(function, torch._ops.OpOverloadPacket):
        return [function, *(getattr(function, name) for name in function.overloads())]
    torchs = (getattr(function, "__module__", None) or "torch").partition(".")[0] == "torch"
    if isinstance(function, types.FunctionType) and not torchs:
        if "handle_torch_function" not in function.__code__.co_names:
            raise ConfigurationError(
                f"calls of {function.__qualname__} cannot be seen, so a rule for it would never be asked. Define it "
                "with @tacit.visible, or as a custom operator (torch.library.custom_op)."
            )
    elif not callable(function):
        raise ConfigurationError(f"{function!r} is a {type(function).__name__}, not a function.")
    return [function]
