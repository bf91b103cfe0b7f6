"""Shapes that depend on the batch size, as rules by which they are found from the numbers that a graph is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from tacit.errors import NoRuleError


class Sizes:
    """Reads sizes of tensors of a trace; later, the same sizes in a call.

    Args:
        examples: what the graph takes: tensors and numbers, with symbols for what varies.
    """

    def __init__(self, examples: Sequence[Any]) -> None:
        self._places: dict[Any, tuple[int, int | None]] = {}
        for place, value in enumerate(examples):
            if isinstance(value, torch.SymInt):
                self._note(value, (place, None))
            elif isinstance(value, torch.Tensor):
                for dim, size in enumerate(value.shape):
                    self._note(size, (place, dim))
        self._rules: list[tuple[Any, ...]] = []
        self._known: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def _note(self, size: Any, place: tuple[int, int | None]) -> None:
        expression = _expression(size)
        if getattr(expression, "is_Symbol", False):
            self._places.setdefault(expression, place)

    def add(self, sizes: Iterable[Any]) -> int:
        """Remember some sizes; returns the place of theirs in what :meth:`read` returns.

        Raises:
            NoRuleError: one depends on the values of tensors.
        """
        rule = tuple(_expression(size) for size in sizes)
        unknown = {s for size in rule if not isinstance(size, int) for s in size.free_symbols} - set(self._places)
        if unknown:
            raise NoRuleError(
                "the shape of what a parameter meets depends on the values of tensors, which a compiled forward cannot "
                "look at. Call the original model."
            )
        self._rules.append(rule)
        return len(self._rules) - 1

    def read(self, inputs: Sequence[Any]) -> list[tuple[int, ...]]:
        """All remembered sizes, in a call with these inputs."""
        values = tuple(
            int(inputs[place] if dim is None else inputs[place].shape[dim]) for place, dim in self._places.values()
        )
        known = self._known.get(values)
        if known is None:
            symbols = dict(zip(self._places, values, strict=True))
            known = [tuple(_value(size, symbols) for size in rule) for rule in self._rules]
            self._known[values] = known
        return known


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else int(size)


def _value(size: Any, symbols: dict[Any, int]) -> int:
    return size if isinstance(size, int) else int(size.subs(symbols))
