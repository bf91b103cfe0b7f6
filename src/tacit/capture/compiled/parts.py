"""Uses taken apart into tensors, which can leave a graph, and put together again from others of the same form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tacit.errors import NoRuleError
from tacit.rules.conv import weight_use
from tacit.rules.linear import outer_use
from tacit.uses import Dense, Gather, Layout, Outer, Patches, Room, Routed, Use


@dataclass(frozen=True, slots=True)
class Form:
    """What is known of a use beside its tensors.

    Attributes:
        name: the parameter.
        use: the class of the use.
        count: the number of its tensors.
        settings: its constants.
    """

    name: str
    use: type[Use]
    count: int
    settings: tuple[Any, ...]

    def build(self, parts: Sequence[Tensor], room: Room, *, table: bool) -> Use:
        """Put a use together. ``table``: rows of the parameter are looked up, too, and its factors are needed."""
        return _BUILD[self.use](parts, self.settings, None if table else room)


def take_apart(name: str, use: Use) -> tuple[Form, tuple[Tensor, ...]]:
    """Return the form of a use, and its tensors, of which those of integers are float64 (exact below 2⁵³).

    Raises:
        NoRuleError: it is of a kind that cannot leave a graph.
    """
    settings: tuple[Any, ...]
    parts: tuple[Tensor, ...]
    if isinstance(use, Outer):
        parts, settings = (use.a, use.g), (tuple(use.shape), use.flipped)
    elif isinstance(use, Gather):
        parts, settings = (use.ids, use.g), (use.shape[0],)
    elif isinstance(use, Patches):
        parts, settings = (use.x, use.g), (tuple(use.shape), use.geometry)
    elif isinstance(use, Routed):
        parts, settings = (use.a, use.g, use.expert), (use.shape[0], use.flipped)
    elif isinstance(use, Dense):
        parts, settings = (use.gradients,), ()
    else:
        raise NoRuleError(f"a use of `{name}` as {type(use).__name__} cannot leave a compiled graph yet.")
    floating = tuple(part if part.is_floating_point() else part.to(torch.float64) for part in parts)
    return Form(name, type(use), len(parts), settings), floating


def _outer(parts: Sequence[Tensor], settings: tuple[Any, ...], room: Room | None) -> Use:
    (a, g), (shape, flipped) = parts, settings
    if room is None:  # a table's factors are needed
        return Outer(a, g, torch.Size(shape), flipped=flipped)
    return outer_use(a, g, torch.Size(shape), room=room, flipped=flipped)


def _gather(parts: Sequence[Tensor], settings: tuple[Any, ...], _room: Room | None) -> Use:
    return Gather(parts[0].long(), parts[1], settings[0])


def _patches(parts: Sequence[Tensor], settings: tuple[Any, ...], room: Room | None) -> Use:
    (x, g), (shape, geometry) = parts, settings
    return weight_use(x, g, x.new_empty(shape), geometry, Layout(x.shape[0], 0), room or Room())


def _routed(parts: Sequence[Tensor], settings: tuple[Any, ...], _room: Room | None) -> Use:
    a, g, expert = parts
    return Routed(a, g, expert.long(), settings[0], flipped=settings[1])


def _dense(parts: Sequence[Tensor], _settings: tuple[Any, ...], _room: Room | None) -> Use:
    return Dense(parts[0])


_BUILD: dict[type[Use], Callable[[Sequence[Tensor], tuple[Any, ...], Room | None], Use]] = {
    Outer: _outer,
    Gather: _gather,
    Patches: _patches,
    Routed: _routed,
    Dense: _dense,
}
