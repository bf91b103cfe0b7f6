"""Weights stand still from a draw's first backward to its step.

Where weights are moved between two backwards of a draw (sharpness-aware minimization, an inner step), it is by
gradients that have no noise: the second sum depends on every record through the weights as well, which no clipping
bounds.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from tacit.errors import PrivacyError
from tacit.sampling import Batch


class StillWeights:
    """Refuses a backward of a draw if weights were written since an earlier one.

    Args:
        weights: the private parameters. What is written past autograd (``.data``, NumPy) is not seen.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = list(weights)
        self._seen: dict[Batch, int] = {}

    def check(self, batch: Batch) -> None:
        """A backward of this draw has run.

        Raises:
            PrivacyError: weights have moved since its first one.
        """
        writes = sum(weight._version for weight in self._weights)
        if self._seen.setdefault(batch, writes) != writes:
            raise PrivacyError(
                "weights were changed between two backwards of one batch, before its step: whatever they were moved by "
                "(a gradient without noise, as in sharpness-aware minimization or an inner step) may depend on every "
                "record of it, and so would this gradient. Change weights after optimizer.step() only, or draw a new "
                "batch."
            )

    def forget(self) -> None:
        """What was differentiated is released: weights may move."""
        self._seen.clear()
