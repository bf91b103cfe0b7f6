"""Many small uses at once: biases and norms' weights cost more in calls than in arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tacit.uses.base import Use
from tacit.uses.dense import Dense
from tacit.uses.numerics import wide
from tacit.uses.outer import Outer

SMALL = 4096
"""Parameters of at most so many numbers are taken together."""

FEW = 2**15
"""And gradients of all samples of at most so many: copying larger ones side by side costs more than calls do."""

FORMED = 2**14
"""Whole gradients of so many numbers are formed of a small matrix's factors: that is one call, and factors take ten."""

_SCATTERED = 2**15
"""So many numbers are added up by one call; of more, a call for each parameter is quicker."""


class Together:
    """The whole per-sample gradients of several small parameters, side by side.

    Args:
        uses: by name; each a :class:`Dense`.
    """

    def __init__(self, uses: Mapping[str, Dense]) -> None:
        self.names = tuple(uses)
        self._shapes = [use.shape for use in uses.values()]
        self._sizes = tuple([shape.numel() for shape in self._shapes])
        self._rows = torch.cat([wide(use.gradients).reshape(use.samples, -1) for use in uses.values()], 1)

    def squared_norms(self) -> dict[str, Tensor]:
        """``(B,)`` for each, float64."""
        sums = segment_sums(self._rows.double().square_(), self._sizes)
        return dict(zip(self.names, sums.unbind(-1), strict=True))

    def weighted_sums(self, factors: Tensor) -> dict[str, Tensor]:
        """The clipped sum of each, where all have the same factors ``(B,)``."""
        total = self._rows.t().mv(factors.to(self._rows.dtype))
        # Copies: views of one tensor would share its version, by which the leak guard tells changes.
        split: Any = torch.split_with_sizes_copy  # torch's stubs know only the form that returns nothing
        parts: Sequence[Tensor] = split(total, self._sizes)
        return {
            name: part if len(shape) == 1 else part.view(shape)
            for name, part, shape in zip(self.names, parts, self._shapes, strict=True)
        }


def segment_sums(values: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Sums over consecutive parts of the last dimension of the given sizes: ``(…, D)`` → ``(…, len(sizes))``."""
    if values.numel() > _SCATTERED or values.device.type != "cpu":
        return torch.stack([part.sum(-1) for part in values.split(sizes, -1)], -1)
    sums = values.new_zeros((*values.shape[:-1], len(sizes)))
    return sums.scatter_add_(-1, _places(sizes).expand(values.shape), values)


@lru_cache(maxsize=32)
def _places(sizes: tuple[int, ...]) -> Tensor:
    """The number of the part that each value is in."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def small(uses: Mapping[str, Use]) -> tuple[dict[str, Use], Together | None]:
    """Take together what can be: small, whole, in float32 or less, of small batches also what is cheaply made whole.

    Returns:
        The uses, those that were made whole in that form, in which they are to be summed, too; and those that were
        taken together, None if there are fewer than two.
    """
    found: dict[str, Dense] = {}
    for name, use in uses.items():
        if use.shape.numel() > SMALL:
            continue
        if type(use) is Outer and not use.formed and use.samples * use.shape.numel() <= FORMED:
            held = use.stored()
        elif type(use) is Dense and use.gradients.numel() <= FEW:
            held = use
        else:
            continue
        if held.gradients.dtype != torch.float64:
            found[name] = held
    devices = {use.gradients.device for use in found.values()}
    together = Together(found) if len(found) > 1 and len(devices) == 1 else None
    return {**uses, **found}, together
