"""A use that holds its per-sample gradients as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from tacit.uses.base import Use, zero_samples
from tacit.uses.numerics import wide
from tacit.uses.units import Units


class Dense(Use):
    """``G`` itself, of shape ``(B, *shape)``: for biases, normalization, scales, and small weights.

    Args:
        gradients: ``G``.
    """

    def __init__(self, gradients: Tensor) -> None:
        self.gradients = gradients
        self.samples = gradients.shape[0]
        self.shape = gradients.shape[1:]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.gradients,)

    def squared_norms(self) -> Tensor:
        return self.part_squares()[0]

    def weighted_sum(self, factors: Tensor, limit: float | None) -> Tensor:  # noqa: ARG002  no terms, no cancellation
        rows = wide(self.gradients).reshape(self.samples, -1)
        return rows.t().mv(factors.to(rows.dtype)).view(self.shape)

    def dense(self) -> Tensor:
        return wide(self.gradients)

    def without(self, dropped: Tensor) -> Use:
        return Dense(zero_samples(self.gradients, dropped))

    def transposed(self) -> Use:
        return Dense(self.gradients.transpose(-2, -1))

    def grouped(self, units: Units) -> Use:
        return Dense(units.total(wide(self.gradients)))

    def reshaped(self, shape: torch.Size) -> Use:
        return Dense(self.gradients.reshape(self.samples, *shape))

    def placed(self, first: int, rows: int) -> Use:
        whole = self.gradients.new_zeros((self.samples, rows, *self.shape[1:]))
        whole[:, first : first + self.shape[0]] = self.gradients
        return Dense(whole)
