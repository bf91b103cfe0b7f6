"""What a *use* of a parameter is: one call's contribution to each sample's gradient.

Index convention: ``b`` sample, ``t`` position, ``d`` input feature, ``p`` output feature, ``v`` table row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable

import torch
from torch import Tensor

from tacit.uses.cost import Product
from tacit.uses.numerics import sample_squares, wide
from tacit.uses.units import Units


class Use(ABC):
    """The per-sample gradients ``G[b]`` of one parameter, kept in whatever form is cheapest.

    Attributes:
        samples: number of samples ``B``.
        shape: shape of the parameter, so that ``G`` has the shape ``(B, *shape)``.
        product: sizes of the sum of outer products that it is, in whatever form it is kept; None if it is none.
        tried: under which key its forms were timed, if that is not its product's.
    """

    samples: int
    shape: torch.Size
    product: Product | None = None
    tried: Hashable = None
    _part_squares: tuple[Tensor, ...] | None = None

    @property
    @abstractmethod
    def parts(self) -> tuple[Tensor, ...]:
        """All that ``G`` is made of; each has the samples in dimension 0."""

    def part_squares(self) -> tuple[Tensor, ...]:
        """The sum of squares of each sample of each part: ``(B,)``, float64; summed once. Not to be changed."""
        if self._part_squares is None:
            numbers = [wide(part) if part.is_floating_point() else part.double() for part in self.parts]
            self._part_squares = tuple(sample_squares(part) for part in numbers)
        return self._part_squares

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """Return ``sum(G[b]**2)`` for each sample: shape ``(B,)``, float64."""

    def forget(self) -> None:
        """Forget norms that were computed; they are computed anew when they are asked for."""
        self._part_squares = None

    def excess(self, factors: Tensor, limit: float) -> Tensor | None:  # noqa: ARG002
        """Which samples :meth:`weighted_sum` sums with more precision: a mask ``(B,)``; None if none ever is."""
        return None

    @abstractmethod
    def weighted_sum(self, factors: Tensor, limit: float | None) -> Tensor:
        """Return ``sum_b factors[b] * G[b]``, of the parameter's shape, in float32 at least.

        Args:
            factors: ``(B,)``, non-negative.
            limit: a bound on ``factors[b] * ‖G[b]‖``: where a sample's terms are much longer than that, and cancel,
                they are summed with more precision. None if it is known that there are no such samples.
        """

    @abstractmethod
    def dense(self) -> Tensor:
        """Return ``G`` itself, ``(B, *shape)``, in float32 at least: sums of several must match their joint norms."""

    @abstractmethod
    def without(self, dropped: Tensor) -> Use:
        """Return the use with the samples of the boolean mask ``dropped`` (B,) set to exact zeros."""

    @abstractmethod
    def transposed(self) -> Use:
        """Return the use of the 2-d parameter's transpose."""

    @abstractmethod
    def grouped(self, units: Units) -> Use:
        """Return the use by unit: ``G[u]`` is the sum over the rows of unit u."""

    @abstractmethod
    def reshaped(self, shape: torch.Size) -> Use:
        """Return the use of the parameter in another (row-major) shape."""

    @abstractmethod
    def placed(self, first: int, rows: int) -> Use:
        """Return the use of a parameter of ``rows`` rows (dimension 0), whose rows from ``first`` on are this one's."""


def zero_samples(values: Tensor, dropped: Tensor) -> Tensor:
    """Set whole samples to zero by selection: a product would keep their NaN and infinities."""
    mask = dropped.reshape(-1, *[1] * (values.dim() - 1))
    return values.masked_fill(mask, 0)
