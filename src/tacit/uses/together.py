"""Many small uses at once: biases and norms' weights cost more in calls than in arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tacit.uses.base import Use
from tacit.uses.dense import Dense
from tacit.uses.gather import Gather
from tacit.uses.numerics import wide
from tacit.uses.outer import Outer

SMALL = 4096
"""Parameters of at most so many numbers are taken together."""

FEW = 2**15
"""And gradients of all samples of at most so many: copying larger ones side by side costs more than calls do."""

FORMED = 2**14
"""Whole gradients of so many numbers are formed of a small matrix's factors, or of what was looked up in a small table:
that is a call or two, and factors take ten."""


class Together:
    """The whole per-sample gradients of several small parameters, side by side.

    Args:
        uses: by name; each a :class:`Dense`.
    """

    def __init__(self, uses: Mapping[str, Dense]) -> None:
        self.names = tuple(uses)
        self._shapes = [use.shape for use in uses.values()]
        self._sizes = tuple([shape.numel() for shape in self._shapes])
        self._rows = torch.cat([_rows(use) for use in uses.values()], 1)

    def squared_norms(self) -> Tensor:
        """``(len(names), B)``, float64."""
        return segment_sums(self._rows.double().square_(), self._sizes).t()

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


def _rows(use: Dense) -> Tensor:
    gradients = wide(use.gradients)
    return gradients if gradients.dim() == 2 else gradients.reshape(use.samples, -1)


def segment_sums(values: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Sums over consecutive parts of the last dimension of the given sizes: ``(…, D)`` → ``(…, len(sizes))``."""
    if values.device.type != "cpu" or 0 in sizes:  # NumPy takes an empty part for the number that follows
        return torch.stack([part.sum(-1) for part in values.split(sizes, -1)], -1)
    return torch.from_numpy(np.add.reduceat(values.numpy(), _begins(sizes), axis=-1))


@lru_cache(maxsize=32)
def _begins(sizes: tuple[int, ...]) -> np.ndarray:
    """Where each part begins."""
    return np.cumsum((0, *sizes[:-1]))


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
        elif type(use) is Gather and use.samples * use.shape.numel() <= FORMED:
            held = Dense(use.dense())
        elif type(use) is Dense and use.gradients.numel() <= FEW:
            held = use
        else:
            continue
        if held.gradients.dtype != torch.float64:
            found[name] = held
    devices = {use.gradients.device for use in found.values()}
    together = Together(found) if len(found) > 1 and len(devices) == 1 else None
    return {**uses, **found}, together
