"""Which runs made the releases of a history: equal ones of another run are others."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

Stretch = tuple[str, int]
"""A name, and how many releases were made under it."""


class Lineage:
    """The stretches of a history, in their order: a new one begins wherever a history is taken over.

    A history that continues another begins with its stretches. How often each release is in both does not tell: two
    runs of one program make equal ones.

    Attributes:
        stretches: what was made so far; None if a ledger counts, which knows all by itself.
    """

    def __init__(self) -> None:
        self.stretches: list[Stretch] | None = []
        self._name = secrets.token_hex(8)
        self._taken_over = 0

    def made(self, count: int) -> None:
        """So many releases were made here."""
        if self.stretches is None:
            return
        name = f"{self._name}.{self._taken_over}"
        if self.stretches and self.stretches[-1][0] == name:
            count += self.stretches.pop()[1]
        self.stretches.append((name, count))

    def take_over(self, stretches: list[Stretch] | None) -> None:
        """Go on after the releases of another history."""
        self.stretches = None if stretches is None else list(stretches)
        self._taken_over += 1

    def follow(self, other: Lineage) -> None:
        """Be what another process is: all that train together make the same releases, under the same names."""
        self._name, self._taken_over = other._name, other._taken_over
        self.stretches = None if other.stretches is None else list(other.stretches)


def stretches_of(state: object) -> list[Stretch] | None:
    """Stretches as they are in a file.

    Raises:
        ValueError: they are something else.
    """
    if state is None:
        return None
    if isinstance(state, Sequence) and all(map(_is_stretch, state)):
        return [(name, count) for name, count in state]
    raise ValueError("the stretches of a lineage are names, and how many releases each made")


def _is_stretch(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    return isinstance(value[0], str) and type(value[1]) is int and value[1] > 0


def continues(later: list[Stretch] | None, earlier: list[Stretch] | None) -> bool:
    """Whether a history has all releases of an earlier one. Of those that a ledger counts nothing is known here."""
    if earlier is None or later is None:
        return earlier == later or earlier == []
    if not earlier:
        return True
    *whole, (name, count) = earlier
    same = later[: len(whole)] == whole and len(later) > len(whole)
    return same and later[len(whole)][0] == name and later[len(whole)][1] >= count
