"""From torch functions to rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tacit.errors import ConfigurationError

Rule = Callable[..., Any]
"""``rule(contact, *args, **kwargs)`` with the arguments of the torch function; returns what it returns."""

_RULES: dict[Callable[..., Any], Rule] = {}
_ALWAYS: set[Callable[..., Any]] = set()

R = TypeVar("R", bound=Rule)


def rule_for(*functions: Callable[..., Any], always: bool = False) -> Callable[[R], R]:
    """Register the decorated rule for ``functions``. A function has one rule.

    Args:
        functions: what the rule stands for.
        always: it rewrites the call into others, and is to do so without a parameter, too, so that the batch can be
            followed through.

    Raises:
        ConfigurationError: one of the functions has a rule already.
    """

    def register(rule: R) -> R:
        for function in functions:
            if function in _RULES:
                raise ConfigurationError(f"{function!r} has a rule already: {_RULES[function]!r}")
            _RULES[function] = rule
            if always:
                _ALWAYS.add(function)
        return rule

    return register


def find_rule(function: Callable[..., Any]) -> Rule | None:
    return _RULES.get(function)


def is_always_rewritten(function: Callable[..., Any]) -> bool:
    return function in _ALWAYS


def methods(names: Iterable[str], *owners: Any) -> list[Callable[..., Any]]:
    """Collect the functions that ``owners`` have under ``names``, each once."""
    found = [getattr(owner, name, None) for owner in owners for name in names]
    return list(dict.fromkeys(function for function in found if function is not None))
