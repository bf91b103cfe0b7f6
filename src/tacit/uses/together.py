"""Many small uses at once: biases and norms' weights cost more in calls than in arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tacit.uses.base import Use
from tacit.uses.dense import Dense
from tacit.uses.numerics import wide

SMALL = 4096
"""Parameters of at most so many numbers are taken together."""

FEW = 2**15
"""And gradients of all samples of at most so many: copying larger ones side by side costs more than calls do."""


class Together:
    """The whole per-sample gradients of several small parameters, side by side.

    Args:
        uses: by name; each a :class:`Dense`.
    """

    def __init__(self, uses: Mapping[str, Dense]) -> None:
        self.names = tuple(uses)
        self._shapes = [use.shape for use in uses.values()]
        self._sizes = [shape.numel() for shape in self._shapes]
        self._rows = torch.cat([wide(use.gradients).reshape(use.samples, -1) for use in uses.values()], 1)

    def squared_norms(self) -> dict[str, Tensor]:
        """``(B,)`` for each, float64."""
        squares = self._rows.double().square_()
        parts: Sequence[Tensor] = squares.split(self._sizes, 1)
        return {name: part.sum(1) for name, part in zip(self.names, parts, strict=True)}

    def weighted_sums(self, factors: Tensor) -> dict[str, Tensor]:
        """The clipped sum of each, where all have the same factors ``(B,)``."""
        total = self._rows.t().mv(factors.to(self._rows.dtype))
        parts: Sequence[Tensor] = total.split(self._sizes)
        # Clones: views of one tensor would share its version, by which the leak guard tells changes.
        return {n: part.clone().view(s) for n, part, s in zip(self.names, parts, self._shapes, strict=True)}


def small(uses: Mapping[str, Use]) -> Together | None:
    """Those that can be taken together: small, whole, in float32 or less; None if there are fewer than two."""
    found = {
        name: use
        for name, use in uses.items()
        if isinstance(use, Dense)
        and use.shape.numel() <= SMALL
        and use.gradients.numel() <= FEW
        and use.gradients.dtype != torch.float64
    }
    devices = {use.gradients.device for use in found.values()}
    return Together(found) if len(found) > 1 and len(devices) == 1 else None
