"""What a clipping policy is: per-sample norms in, factors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor


class ClippingPolicy(ABC):
    """Scales each sample's gradient so that its contribution to the sum is bounded.

    A policy sees norms only, so it cannot leak gradients. Its guarantee: for any norms, the l2 norm over all
    parameters of ``factors * gradients`` of one sample is at most ``sensitivity``.
    """

    @property
    @abstractmethod
    def sensitivity(self) -> float:
        """The most that adding or removing one sample changes the clipped sum, in l2 norm."""

    @abstractmethod
    def group(self, name: str) -> str:
        """Which parameters are clipped together: the factor of one depends on the norms of its own group alone."""

    @property
    def uniform(self) -> bool:
        """Whether a sample's factor is the same for all parameters."""
        return False

    @abstractmethod
    def factors(self, norms: Tensor, names: Sequence[str]) -> Tensor:
        """Return the factor of each parameter and sample.

        Args:
            norms: float64, shape ``(P, B)``: l2 norm of each parameter's gradient of each sample. Finite.
            names: the P parameters; of each group all that have a gradient, or none.

        Returns:
            Non-negative factors of the same shape.
        """
